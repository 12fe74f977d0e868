"""A tiny real model for the tests of `serve`: it tells the prevailing colour of an 8 x 8 picture."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fuseline.serve.input_format import INPUT_FORMATS, InputFormat
from fuseline.serve.model_package import (
    Artifact,
    InputSpec,
    Manifest,
    Normalization,
    PackageFile,
    Preprocessing,
    file_facts,
    save_manifest,
)
from fuseline.serve.reference import REFERENCE_NAME, write_reference

HEIGHT, WIDTH, CHANNELS = 8, 8, 3
LABELS = ("red", "green", "blue", "dark")
WEIGHTS = np.array([[4, -1, -1, -2], [-1, 4, -1, -2], [-1, -1, 4, -2]], np.float32)
BIASES = np.array([0, 0, 0, 1], np.float32)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)
"""Normalisation of the model where it takes normalised floats; pixels go unnormalised into its other form."""


def write_colours_package(
    folder: Path,
    *,
    name: str = "colours",
    labels: tuple[str, ...] = LABELS,
    weights: NDArray[np.float32] = WEIGHTS,
    biases: NDArray[np.float32] = BIASES,
    takes: str = "uint8-nhwc",
    input_name: str | None = None,
    output_name: str | None = None,
    **told: Any,
) -> Path:
    """Write a package whose logits are `mean of each channel / 255 @ weights + biases`, and return its folder.

    `takes` is one of `INPUT_FORMATS`, and the names are by default that format's. `told` are further fields of the
    manifest.
    """
    folder.mkdir(parents=True)
    form = INPUT_FORMATS[takes]
    spec = InputSpec(
        height=HEIGHT,
        width=WIDTH,
        channels=CHANNELS,
        name=input_name or form.input_name,
        dtype=form.dtype,
        layout=form.layout,
        preprocessing=Preprocessing(resize_shorter_side=HEIGHT),
    )
    normalization = Normalization(mean=MEAN, std=STD, folded=False)
    output_name = output_name or form.output_name
    nodes, constants = _scaled_nodes(form, spec.name)
    nodes += [
        helper.make_node("ReduceMean", ["scaled", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "weights", "biases"], [output_name]),
    ]
    constants |= {"weights": weights, "biases": biases}
    element = TensorProto.DataType.Value(form.onnx_type)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(spec.name, element, ["batch", *spec.row_shape])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    pixels = noise(4)
    write_reference(folder, pixels, expected_logits(pixels, weights, biases).astype(np.float32))
    model_file = file_facts(folder, "model.onnx") | {"format": "onnx", "precision": "fp32"}
    save_manifest(
        folder,
        Manifest(
            name=name,
            architecture="colours",
            input=spec,
            normalization=normalization if form.normalised else Normalization(mean=(0, 0, 0), std=(1, 1, 1)),
            labels=labels,
            artifacts=(Artifact.model_validate(model_file),),
            reference=PackageFile.model_validate(file_facts(folder, REFERENCE_NAME)),
            provenance={},
            output_name=output_name,
            **told,
        ),
    )
    return folder


def _scaled_nodes(form: InputFormat, input_name: str) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """What turns the input into `scaled`, pixels of 0..1, and the constants; `axes` are those of height and width."""
    cast = helper.make_node("Cast", [input_name], ["floats"], to=TensorProto.FLOAT)
    if not form.normalised:
        return [cast, helper.make_node("Div", ["floats", "full"], ["scaled"])], {
            "full": np.float32(255),
            "axes": np.array([1, 2]),
        }
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (MEAN, STD))
    nodes = [
        cast,
        helper.make_node("Mul", ["floats", "std"], ["centred"]),
        helper.make_node("Add", ["centred", "mean"], ["scaled"]),
    ]
    return nodes, {"mean": mean, "std": std, "axes": np.array([2, 3])}


def expected_logits(
    pixels: NDArray[np.uint8], weights: NDArray[np.float32] = WEIGHTS, biases: NDArray[np.float32] = BIASES
) -> NDArray[np.float64]:
    """Logits (rows, classes) that the model answers for pixels (rows, height, width, channels)."""
    return pixels.astype(np.float64).mean(axis=(1, 2)) / 255 @ weights + biases


def noise(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pictures (rows, height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (rows, HEIGHT, WIDTH, CHANNELS), dtype=np.uint8)


def plain(colour: str, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A picture of one of `LABELS`."""
    pixels = np.zeros((height, width, CHANNELS), np.uint8)
    if colour != "dark":
        pixels[..., LABELS.index(colour)] = 255
    return pixels


def encoded(pixels: NDArray[np.uint8], format: str = "PNG") -> bytes:
    """`pixels` as the bytes of an image file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()
