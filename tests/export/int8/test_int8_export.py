"""`export --int8` as a user runs it."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fuseline.export.artifacts import Int8Options
from fuseline.export.int8 import int8_graph
from fuseline.export.loading.loading import NetworkSource
from fuseline.export.pipeline import ExportOptions, export_checkpoint
from fuseline.export.progress import ConsoleProgress
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.onnx_artifact import onnx_artifact
from fuseline.serve.errors import BackendUnavailableError, VerificationError
from fuseline.serve.model_package import ModelPackage, load_package
from fuseline.serve.package_engines import add_engine
from fuseline.serve.reference import check_reference
from tests.commands import Run, only_error

INT8_GRAPHS = ["model.int8.onnx", "model.int8.tensorrt.onnx"]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    out = tmp_path_factory.mktemp("int8") / "tiny"
    options = ExportOptions(NetworkSource(tiny_checkpoint), out=out, int8=Int8Options(bar=0.9))
    export_checkpoint(options, ConsoleProgress())
    return load_package(out)


def test_it_writes_a_graph_for_cpus_and_one_for_tensorrt(exported: ModelPackage) -> None:
    assert [a.path for a in exported.manifest.artifacts if a.precision == "int8"] == INT8_GRAPHS
    for reader, path in zip(("cpu", "tensorrt"), INT8_GRAPHS, strict=True):
        assert onnx_artifact(exported, "int8", reader=reader).path == path
    with pytest.raises(BackendUnavailableError, match="none for cuda"):
        onnx_artifact(exported, "int8", reader="cuda")


def test_int8_is_judged_on_images_that_it_was_not_calibrated_on(exported: ModelPackage) -> None:
    plain = json.loads((exported.folder / "report.json").read_text())
    checks = [check for check in exported.manifest.verification if check.artifact in INT8_GRAPHS]
    assert {check.backend for check in checks} >= {"onnxruntime (CPU)", "openvino (CPU)"}
    for check in checks:
        assert (check.images, check.image_source) == (128, "128 held-out images of 256 generated images")
        assert "top-1 agreement at least 90.0%" in check.bar
        found = plain["int8"][check.artifact]
        assert (found["calibration_images"], found["held_out_images"], found["bar"]) == (128, 128, 0.9)
        # The graph that was written is the one that was measured.
        runtime = check.backend.split()[0]
        assert check.top1_agreement == pytest.approx(found["agreement_by_runtime"][runtime], abs=1 / 128)
    assert {check.images for check in exported.manifest.verification if check.artifact == "model.onnx"} == {256}


def test_the_report_shows_what_was_tried_and_what_the_bar_took(exported: ModelPackage) -> None:
    page = (exported.folder / "report.html").read_text()
    for found in json.loads((exported.folder / "report.json").read_text())["int8"].values():
        assert {trial["calibrator"] for trial in found["trials"]} == {"entropy", "percentile", "min-max"}
        assert found["share"]["int8_layers"] == found["share"]["layers"] == 21
    assert "INT8: what agreement took" in page
    assert "INT8 for TensorRT: what agreement took" in page
    assert "INT8 was calibrated, and all verified on generated images only" in " ".join(page.split())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_server_runs_the_graph_for_cpus_and_holds_it_against_the_reference(
    exported: ModelPackage, backend: str
) -> None:
    opened, _ = open_backend(exported, backend=backend, precision="int8", buckets=(8,))
    assert opened.precision == "int8"
    check_reference(opened, exported)
    opened.close()


def test_tensorrt_builds_its_engine_from_the_graph_for_tensorrt(exported: ModelPackage) -> None:
    pytest.importorskip("tensorrt_rtx")
    added = add_engine(
        exported.folder,
        capability="sm89",
        precision="int8",
        max_batch=4,
        show_progress=lambda: nullcontext(lambda phase, done: None),
        on_wait=lambda: None,
    )
    assert added.artifact.details["graph_sha256"] == onnx_artifact(exported, "int8", reader="tensorrt").sha256
    assert added.built is not None
    assert added.built.achieved.layers == {"int8": 21}


def test_below_the_bar_nothing_is_written_and_the_error_tells_the_trade(tiny_checkpoint: Path, tmp_path: Path) -> None:
    # No network reaches that.
    options = ExportOptions(NetworkSource(tiny_checkpoint), out=tmp_path / "m", int8=Int8Options(bar=1.01))
    told = r"at least 101.00% is asked for, though layers were given back to FP32 \(\S+ in FP32: [\d.]+% to [\d.]+%"
    with pytest.raises(VerificationError, match=told):
        export_checkpoint(options, ConsoleProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_for_tensorrt_that_misses_the_bar_is_left_out_and_said(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_a_number(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"onnxruntime": np.full((len(pixels), 10), np.nan, np.float32)}

    forms = int8_graph._FORMS
    monkeypatch.setitem(forms, "tensorrt", (forms["tensorrt"][0], not_a_number))
    result = run_export(tiny_checkpoint, "--int8", "--int8-bar", "0.5", "--out", tmp_path / "m")
    assert result.exit_code == 0, result.stderr
    assert (
        "there is no INT8 graph for TensorRT: in INT8 the model has eager PyTorch's top-1 class on 0.00%"
        in result.stderr
    )
    package = load_package(tmp_path / "m")
    assert [a.path for a in package.manifest.artifacts] == ["model.onnx", "model.int8.onnx"]
    assert (
        "there is no INT8 graph for TensorRT"
        in json.loads((package.folder / "report.json").read_text())["warnings"][-1]
    )
    with pytest.raises(BackendUnavailableError, match="for cpu only, none for tensorrt"):
        onnx_artifact(package, "int8", reader="tensorrt")


def test_a_bar_without_int8_and_too_few_images_are_refused(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert "add --int8" in only_error(run_export(tiny_checkpoint, "--int8-bar", "0.9", "--out", tmp_path / "m"))
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 2 * number, 0)).save(tmp_path / "pictures" / f"{number}.png")
    result = run_export(tiny_checkpoint, "--int8", "--images", tmp_path / "pictures", "--out", tmp_path / "m")
    assert "10 images to calibrate INT8 on; at least 16 are needed" in only_error(result)
    assert not (tmp_path / "m").exists()
