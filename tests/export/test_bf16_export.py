"""What an export finds out about BF16, which CPUs that have it serve `--fp16` packages in."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.backends import open_backend, openvino
from fuseline.serve.errors import VerificationError
from fuseline.serve.model_package import load_package
from fuseline.serve.precision import PRECISIONS
from tests.bf16 import needs_bf16, play_cpu
from tests.commands import Run


@needs_bf16
def test_an_export_with_fp16_verifies_bf16_through_openvino_and_reports_it(tiny_package: Path) -> None:
    package = load_package(tiny_package)
    (check,) = [check for check in package.manifest.verification if check.precision is not None]
    assert (check.artifact, check.backend, check.precision) == ("model.onnx", "openvino (CPU, BF16)", "bf16")
    assert check.passed
    assert 1e-4 < check.max_abs_difference / check.logit_range < 0.05
    plain = json.loads((tiny_package / "report.json").read_text())
    assert check.model_dump(mode="json") in plain["manifest"]["verification"]
    assert "openvino (CPU, BF16)" in (tiny_package / "report.html").read_text()
    backend, _ = open_backend(package, buckets=(1,), threads=1)
    assert (backend.name, backend.precision, backend.half_share) == ("openvino", "bf16", 1.0)
    backend.close()


@needs_bf16
def test_the_execution_graph_is_known_whole_before_the_first_batch(tiny_package: Path) -> None:
    request = openvino.open_request(tiny_package / "model.onnx", precision="bf16")
    before = openvino.layer_types(request.get_compiled_model())
    request.infer([np.zeros((3, 32, 32, 3), np.uint8)])
    assert before == openvino.layer_types(request.get_compiled_model()) == Counter(bf16=21)


@needs_bf16
def test_below_its_bar_the_package_is_written_with_a_warning_and_served_in_fp32(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "bf16", replace(PRECISIONS["bf16"], max_difference=1e-6))
    code, out, err = run_export(tiny_checkpoint, "--fp16", "--out", tmp_path / "m")
    assert code == 0, err
    warning = "BF16 is served only with --precision bf16: model.onnx on openvino (CPU, BF16): top-1 agreement"
    assert f"warning: {warning}" in err
    assert "is complete: 2 artifacts verified" in out
    html = (tmp_path / "m" / "report.html").read_text()
    assert "equal to PyTorch" in html
    assert "differs from PyTorch" not in html
    assert warning in html
    package = load_package(tmp_path / "m")
    assert [check.precision for check in package.manifest.verification if not check.passed] == ["bf16"]
    backend, _ = open_backend(package, buckets=(1,), threads=1)
    assert (backend.name, backend.precision) == ("openvino", "fp32")
    backend.close()


def test_on_a_cpu_without_it_nothing_is_verified_and_that_is_said(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_cpu(monkeypatch, has_bf16=False)
    code, _, err = run_export(tiny_checkpoint, "--fp16", "--out", tmp_path / "m")
    assert code == 0, err
    assert [check.precision for check in load_package(tmp_path / "m").manifest.verification] == [None] * 4
    (skipped,) = json.loads((tmp_path / "m" / "report.json").read_text())["skipped"]
    assert (skipped["artifact"], skipped["backend"]) == ("model.onnx", "openvino in BF16")
    assert "neither AVX512_BF16 nor AMX" in skipped["reason"]
    assert "Not run here: <code>model.onnx</code> on openvino in BF16" in (tmp_path / "m" / "report.html").read_text()


def test_a_runtime_that_rounds_too_few_layers_fails_no_export(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(*_: object) -> float:
        raise VerificationError("2 of 20 layers")

    play_cpu(monkeypatch, has_bf16=True)
    monkeypatch.setattr("fuseline.serve.backends.openvino.checked_share", too_few)
    code, _, err = run_export(tiny_checkpoint, "--fp16", "--out", tmp_path / "m")
    assert code == 0, err
    (skipped,) = json.loads((tmp_path / "m" / "report.json").read_text())["skipped"]
    assert skipped["reason"] == "2 of 20 layers"


def test_without_fp16_bf16_is_not_tried(run_export: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = run_export(tiny_checkpoint, "--out", tmp_path / "m")
    assert code == 0, err
    assert "BF16" not in (tmp_path / "m" / "report.json").read_text()
