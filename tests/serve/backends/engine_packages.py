"""Packages of the small network with engines, and machines that they are opened on."""

import hashlib
from pathlib import Path

import numpy as np

from fuseline.serve.backends import tensorrt
from fuseline.serve.backends.base import OpenRequest
from fuseline.serve.backends.engine import library as tensorrt_engine
from fuseline.serve.backends.engine import target as engine_target
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend
from fuseline.serve.model_package import (
    Artifact,
    InputSpec,
    Manifest,
    ModelPackage,
    Normalization,
    PackageFile,
    Preprocessing,
    file_facts,
    load_package,
    save_manifest,
)
from fuseline.serve.reference import write_reference
from tests.export.small_graph import CLASSES, ROW_SHAPE, small_graph
from tests.fakes.gpu import FakeCudart, expected_logits

GRAPHS = {"fp32": small_graph("fp32", transpose_first=True), "fp16": small_graph()}
"""As the exporter writes them: FP32 transposes bytes, FP16 casts first."""


def details_of(precision: str = "fp16", **changes) -> dict[str, object]:
    """Of an engine that fits the fake machine."""
    return {
        "library": "tensorrt",
        "library_version": "11.4.0",
        "compute_capability": "sm89",
        "profile": [1, 8, 32],
        "graph_sha256": hashlib.sha256(GRAPHS[precision]).hexdigest(),
    } | changes


def package_of(folder: Path, *engines, graphs=GRAPHS, onnx_details=None) -> ModelPackage:
    """A package with `graphs` by precision and an engine file for each (name, format, precision, details, bytes).

    Its reference is what the fake engine answers.
    """
    (folder / "engines").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *ROW_SHAPE), np.uint8)
    write_reference(folder, pixels, expected_logits(pixels, CLASSES).astype(np.float32))
    artifacts = []
    for precision, data in graphs.items():
        path = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
        (folder / path).write_bytes(data)
        facts = file_facts(folder, path)
        artifacts.append(Artifact(**facts, format="onnx", precision=precision, details=onnx_details or {}))
    for name, format, precision, details, data in engines:
        path = f"engines/{name}"
        (folder / path).write_bytes(data)
        artifacts.append(Artifact(**file_facts(folder, path), format=format, precision=precision, details=details))
    height, width, _ = ROW_SHAPE
    manifest = Manifest(
        name="small",
        architecture="small",
        input=InputSpec(height=height, width=width, preprocessing=Preprocessing(resize_shorter_side=height)),
        normalization=Normalization(mean=(0.5,) * 3, std=(0.5,) * 3),
        labels=tuple(f"label {index}" for index in range(CLASSES)),
        artifacts=tuple(artifacts),
        reference=PackageFile(**file_facts(folder, "reference.npz")),
        provenance={},
    )
    save_manifest(folder, manifest)
    return load_package(folder)


def open_tensorrt(package: ModelPackage, *, buckets=(), **options) -> TensorRTBackend:
    return tensorrt.open(package, OpenRequest("gpu", buckets, **options))


def why_unavailable(package: ModelPackage, *, buckets=(), **options) -> str | None:
    return tensorrt.why_unavailable(package, OpenRequest("gpu", buckets, **options))


def put_gpu_in(monkeypatch, cudart: FakeCudart) -> None:
    """Let this machine have the fake GPU; the libraries stay those that are installed."""
    for module in (tensorrt, engine_target):
        monkeypatch.setattr(module, "open_cuda", lambda: Cuda(cudart))


def install(monkeypatch, libraries: dict[str, object]) -> None:
    """Let `libraries` be the installed ones."""
    monkeypatch.setattr(engine_target, "is_installed", libraries.__contains__)
    for module in (tensorrt, tensorrt_engine):
        monkeypatch.setattr(module, "import_library", libraries.__getitem__)
