"""Packages whose model costs next to nothing, so that what a server costs is its front end."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.serve.backends.onnxruntime import open_session
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
from fuseline.serve.reference import REFERENCE_NAME, REFERENCE_ROWS, write_reference

_SAMPLED_SIDE = 8
_CHANNELS = 3


def write_tiny_package(folder: Path, *, side: int, classes: int) -> Path:
    """Write a package of a linear model over 8 x 8 pixels, evenly sampled from `side` x `side`; return its folder.

    The other pixels are sent, checked and batched as any, but never computed on: 32 images take 0.05 ms. `side` is a
    multiple of 8. The package's reference is what ONNX Runtime itself answers, as there is no trained network behind.
    """
    folder.mkdir(parents=True)
    name = f"tiny{side}"
    (folder / "model.onnx").write_bytes(graph := _graph(name, side, classes))
    pixels = generated_pictures((side, side, _CHANNELS), REFERENCE_ROWS)
    write_reference(folder, pixels, open_session(graph, threads=1).run([OUTPUT_NAME], {INPUT_NAME: pixels})[0])
    artifact = file_facts(folder, "model.onnx") | {"format": "onnx", "precision": "fp32"}
    manifest = Manifest(
        name=name,
        architecture="linear",
        input=InputSpec(
            height=side, width=side, channels=_CHANNELS, preprocessing=Preprocessing(resize_shorter_side=side)
        ),
        normalization=Normalization(mean=(0,) * _CHANNELS, std=(1,) * _CHANNELS),
        labels=tuple(f"class {index}" for index in range(classes)),
        artifacts=(Artifact.model_validate(artifact),),
        reference=PackageFile.model_validate(file_facts(folder, REFERENCE_NAME)),
        provenance={"made_for": "measuring the front end"},
    )
    save_manifest(folder, manifest)
    return folder


def _graph(name: str, side: int, classes: int) -> bytes:
    features = _SAMPLED_SIDE * _SAMPLED_SIDE * _CHANNELS
    weights = np.random.default_rng(0).normal(0, 1 / 255, (features, classes)).astype(np.float32)
    steps = side // _SAMPLED_SIDE
    constants = {
        "starts": np.array([0, 0]),
        "ends": np.array([side, side]),
        "axes": np.array([1, 2]),
        "steps": np.array([steps, steps]),
        "weights": weights,
    }
    nodes = [
        helper.make_node("Slice", [INPUT_NAME, "starts", "ends", "axes", "steps"], ["sampled"]),
        helper.make_node("Flatten", ["sampled"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["features"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["features", "weights"], [OUTPUT_NAME]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", side, side, _CHANNELS])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
