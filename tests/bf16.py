"""Whether this CPU computes in BF16, CPUs that are played, and packages whose export was asked for half precision."""

from pathlib import Path

import pytest

from fuseline.serve.backends import openvino
from fuseline.serve.model_package import Artifact, ModelPackage, Verification, file_facts, load_package, save_manifest

CPU_HAS_BF16 = openvino.why_no_openvino("bf16") is None
needs_bf16 = pytest.mark.skipif(not CPU_HAS_BF16, reason="this CPU has neither AVX512_BF16 nor AMX")


def play_cpu(monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool) -> None:
    """Let OpenVINO say of this CPU that it computes in BF16, or doesn't."""
    told = frozenset({"FP32", "INT8", *(["BF16"] if has_bf16 else [])})
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: told)


def ask_for_half(folder: Path, *verification: Verification) -> ModelPackage:
    """Make the package in `folder` one with an FP16 graph, its FP32 graph by another name, and with `verification`."""
    manifest = load_package(folder).manifest
    (folder / "model.fp16.onnx").write_bytes((folder / "model.onnx").read_bytes())
    artifact = Artifact.model_validate(file_facts(folder, "model.fp16.onnx") | {"format": "onnx", "precision": "fp16"})
    artifacts = (manifest.artifacts[0], artifact)
    save_manifest(folder, manifest.model_copy(update={"artifacts": artifacts, "verification": verification}))
    return load_package(folder)


def bf16_verification(*, passed: bool) -> Verification:
    """What an export found about BF16 on 40 images."""
    return Verification(
        artifact="model.onnx",
        backend="openvino (CPU, BF16)",
        precision="bf16",
        images=40,
        image_source="40 images",
        top1_agreement=0.975,
        ties=0,
        max_abs_difference=0.1,
        mean_abs_difference=0.01,
        logit_range=10.0,
        bar="top-1 agreement at least 99.0%",
        passed=passed,
    )
