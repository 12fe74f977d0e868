"""A tiny real model for the tests of `serve`: it tells the prevailing colour of an 8 x 8 picture."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fuseline.serve.model_package import (
    INPUT_NAME,
    OUTPUT_NAME,
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


def write_colours_package(
    folder: Path,
    *,
    name: str = "colours",
    labels: tuple[str, ...] = LABELS,
    weights: NDArray[np.float32] = WEIGHTS,
    biases: NDArray[np.float32] = BIASES,
    **told: Any,
) -> Path:
    """Write a package whose logits are `mean of each channel / 255 @ weights + biases`, and return its folder.

    `told` are further fields of the manifest.
    """
    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "full"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "weights", "biases"], [OUTPUT_NAME]),
    ]
    constants = {"full": np.float32(255), "axes": np.array([1, 2]), "weights": weights, "biases": biases}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", HEIGHT, WIDTH, CHANNELS])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", weights.shape[1]])],
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
            input=InputSpec(
                height=HEIGHT, width=WIDTH, channels=CHANNELS, preprocessing=Preprocessing(resize_shorter_side=HEIGHT)
            ),
            normalization=Normalization(mean=(0, 0, 0), std=(1, 1, 1)),
            labels=labels,
            artifacts=(Artifact.model_validate(model_file),),
            reference=PackageFile.model_validate(file_facts(folder, REFERENCE_NAME)),
            provenance={},
            **told,
        ),
    )
    return folder


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
