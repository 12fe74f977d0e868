"""BF16 on CPUs: who computes in it, when, and what is read back. Refusals are tested on CPUs that are played."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.backends import judge_backends, open_backend, openvino, registry
from fuseline.serve.errors import BackendUnavailableError, VerificationError
from fuseline.serve.model_package import ModelPackage, load_package
from tests.bf16 import ask_for_half, bf16_verification, needs_bf16, play_cpu
from tests.fakes.colours import expected_logits, noise, write_colours_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_colours_package(tmp_path / "colours")


def opened(package: ModelPackage, **asked: str) -> tuple[str, str, float | None]:
    """Name, precision and share of the backend that opens."""
    backend, _ = open_backend(package, buckets=(1,), threads=1, **asked)
    backend.close()
    return backend.name, backend.precision, backend.half_share


@needs_bf16
def test_bf16_is_computed_from_the_fp32_graph_and_its_share_is_read_back(folder: Path) -> None:
    backend, _ = open_backend(load_package(folder), precision="bf16", buckets=(8,), threads=1)
    assert (backend.name, backend.precision, backend.half_share) == ("openvino", "bf16", 1.0)
    pixels = noise(8)
    differences = np.abs(backend.infer(pixels) - expected_logits(pixels))
    assert 1e-5 < differences.max() < 0.05, "rounded to 8 bits, and no further"
    backend.close()


@needs_bf16
def test_auto_takes_bf16_where_half_precision_was_asked_for_and_fp32_declines(folder: Path) -> None:
    assert opened(load_package(folder)) == ("openvino", "fp32", None)
    for verification in ((), (bf16_verification(passed=True),)):
        asked = ask_for_half(folder, *verification)
        assert opened(asked) == opened(asked, backend="openvino") == ("openvino", "bf16", 1.0)
    assert opened(asked, precision="fp32") == ("openvino", "fp32", None)
    assert opened(asked, precision="fp16") == ("openvino", "fp16", None)
    assert opened(asked, backend="onnxruntime") == ("onnxruntime", "fp32", None)


def test_auto_leaves_bf16_where_the_export_found_it_below_its_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_cpu(monkeypatch, has_bf16=True)
    assert opened(ask_for_half(folder, bf16_verification(passed=False))) == ("openvino", "fp32", None)


def test_a_cpu_without_it_serves_fp32_and_says_so_where_bf16_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_cpu(monkeypatch, has_bf16=False)
    asked = ask_for_half(folder)
    assert opened(asked) == ("openvino", "fp32", None)
    with pytest.raises(BackendUnavailableError, match=r"neither AVX512_BF16 nor AMX.*--precision fp32"):
        opened(asked, backend="openvino", precision="bf16")


def test_without_openvino_fp32_is_served_and_bf16_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_cpu(monkeypatch, has_bf16=True)
    monkeypatch.setattr(registry, "is_importable", lambda module: module != "openvino")
    asked = ask_for_half(folder)
    assert opened(asked) == ("onnxruntime", "fp32", None)
    with pytest.raises(BackendUnavailableError, match=r"openvino is not installed.*it has no BF16"):
        opened(asked, precision="bf16")


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_backend_without_bf16_says_which_has_it(folder: Path, backend: str) -> None:
    package, reason = load_package(folder), "it has no BF16: take --backend openvino, or --precision fp32"
    with pytest.raises(BackendUnavailableError, match=reason):
        opened(package, backend=backend, precision="bf16")
    judged = judge_backends(package, buckets=(1,), precision="bf16")
    assert {judgement.reason for judgement in judged if judgement.backend == backend} == {reason}


@pytest.mark.parametrize(("types", "share"), [({"bf16": 20}, 1.0), ({"bf16": 19, "f32": 1}, 0.95)])
def test_one_layer_in_twenty_may_be_in_another_type(types: dict[str, int], share: float) -> None:
    assert openvino.checked_share(Counter(types), "bf16") == share


@pytest.mark.parametrize(
    ("types", "found"),
    [
        ({"bf16": 18, "f32": 2}, "18 in bf16, 2 in f32 of 20"),
        ({"f32": 20}, "20 in f32 of 20"),
        ({}, "none at all of 0"),
    ],
)
def test_fewer_are_refused_with_what_came_and_what_to_do(types: dict[str, int], found: str) -> None:
    told = rf"asked for BF16.*computes {found} .*at least 95% were expected in bf16.*--precision fp32"
    with pytest.raises(VerificationError, match=told):
        openvino.checked_share(Counter(types), "bf16")


def test_a_runtime_that_computes_in_fp32_all_the_same_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_cpu(monkeypatch, has_bf16=True)
    as_fp32 = openvino.compile_config("fp32")
    monkeypatch.setattr(openvino, "compile_config", lambda precision, **_: as_fp32)
    with pytest.raises(VerificationError, match="1 in f32 of 1 convolutions and matrix products"):
        opened(load_package(folder), backend="openvino", precision="bf16")
