"""The export as a user runs it: real commands, real checkpoints, bad ones too."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fuseline.export.folding.fold import FoldedNetwork, fold_network
from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
from tests.bf16 import CPU_HAS_BF16
from tests.commands import Outcome, Run, only_error
from tests.export.resnets import cifar_resnet18, tiny_network, trained_like


def test_a_package_is_complete_and_says_what_was_found(tiny_package: Path) -> None:
    package = load_package(tiny_package)
    manifest = package.manifest
    assert {(a.format, a.precision) for a in manifest.artifacts} == {("onnx", "fp32"), ("onnx", "fp16")}
    assert [len(package.read(file)) > 0 for file in (*manifest.artifacts, manifest.reference)] == [True] * 3
    assert (manifest.architecture, manifest.classes) == ("CIFAR ResNet-18 (widths 8-8-16-32-64)", 10)
    assert len(manifest.verification) == 4 + CPU_HAS_BF16
    assert all(check.passed and check.top1_agreement >= 0.995 for check in manifest.verification if not check.precision)
    assert manifest.provenance["checkpoint"] == "tiny.pt"
    assert any("state_dict" in note for note in manifest.provenance["reading"])
    assert manifest.provenance["versions"]["torch"]


def test_the_report_is_readable_and_holds_every_fold_check_and_assumption(tiny_package: Path) -> None:
    plain = json.loads((tiny_package / "report.json").read_text())
    html = (tiny_package / "report.html").read_text()
    assert len(plain["folds"]) == 20
    assert plain["precision"]["model.fp16.onnx"]["fp16_layers"] == 21
    assert "no engine" in plain["engine_note"]
    assert any("generated images" in warning for warning in plain["warnings"])
    for text in ("equal to PyTorch", "layer2.0.shortcut.1", "layer4.1.bn2", "model.fp16.onnx", "generated images"):
        assert text in html, text


def test_the_served_graphs_equal_the_users_own_module(tiny_package: Path) -> None:
    """Against the module that made the checkpoint, not the exporter's reading of it."""
    pixels = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        nchw = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        expected = tiny_network()((nchw - mean) / std).numpy()
    spread = expected.max() - expected.min()
    for precision, bar in (("fp32", 1e-4), ("fp16", 1e-2)):
        for name in ("onnxruntime", "openvino"):
            backend, _ = open_backend(load_package(tiny_package), backend=name, precision=precision, buckets=(4,))
            assert np.abs(backend.infer(pixels) - expected).max() < bar * spread, (precision, name)
            backend.close()


def test_an_existing_package_is_kept_unless_force(run_export: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = run_export(tiny_checkpoint, "--out", out, "--name", "first")
    assert first.exit_code == 0, first.stderr
    assert f"fuseline serve {out}" in first.stdout
    refused = run_export(tiny_checkpoint, "--out", out, "--name", "second")
    assert "--force" in only_error(refused)
    assert load_package(out).manifest.name == "first"
    replaced = run_export(tiny_checkpoint, "--out", out, "--name", "second", "--force")
    assert replaced.exit_code == 0, replaced.stderr
    assert load_package(out).manifest.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_labels_normalisation_size_and_images_are_taken_from_the_flags(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures" / "deeper"
    pictures.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(pictures / f"{number}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {index}" for index in range(10)) + "\n")
    result = run_export(
        tiny_checkpoint, "--out", tmp_path / "m", "--images", pictures.parent, "--labels", labels,
        "--mean", "0.5,0.5,0.5", "--std", "0.2,0.3,0.4", "--input-size", "40x48",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert all(line.startswith("warning: assumed ") for line in warnings), "each flag settles what it says"
    assert not any("size=" in line or "normalization=" in line for line in warnings)
    manifest = load_package(tmp_path / "m").manifest
    assert manifest.labels[3] == "kind 3"
    assert manifest.normalization.std == (0.2, 0.3, 0.4)
    assert manifest.input.row_shape == (40, 48, 3)
    assert {check.images for check in manifest.verification} == {3}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mean", "0.5,0.5,0.5"], "--mean and --std belong together"),
        (["--mean", "a,b,c", "--std", "1,1,1"], "--mean 'a,b,c'"),
        (["--mean", "0.5", "--std", "0.5"], "--mean has 1 values"),
        (["--mean", "123,116,103", "--std", "58,57,57"], "divide"),
        (["--input-size", "huge"], "--input-size 'huge'"),
        (["--input-size", "4"], "--input-size: 4 x 4"),
        (["--images", "nowhere"], "no such folder"),
        (["--labels", "nowhere.txt"], "--labels nowhere.txt"),
        (["--engine", "sm1"], "sm89"),
        (["--name", "../x"], "--name"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], named: str
) -> None:
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m", *arguments)
    assert named in only_error(result)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_do_not_fit_are_refused(run_export: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for text, named in (("one\ntwo\n", "2 labels"), ("a\n" * 4 + "\n" + "b\n" * 5, "label of class 4 is empty")):
        (tmp_path / "labels.txt").write_text(text)
        result = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--labels", tmp_path / "labels.txt")
        assert named in only_error(result)


def test_an_image_that_cannot_be_decoded_is_named(run_export: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m", "--images", tmp_path / "pictures")
    assert "broken.jpg" in only_error(result)


@pytest.mark.parametrize(("flags", "precision"), [((), "fp32"), (("--fp16",), "fp16")])
def test_an_engine_is_built_ahead_of_time_and_the_report_says_that_it_was_not_run(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, flags: tuple[str, ...], precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = run_export(tiny_checkpoint, "--engine", "sm89", *flags, "--out", tmp_path / "m")
    assert result.exit_code == 0, result.stderr
    package = load_package(tmp_path / "m")
    engine = package.find("tensorrt_rtx", precision)
    assert engine is not None
    assert engine.details["compute_capability"] == "sm89"
    assert len(package.read(engine)) == engine.bytes
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert engine.path in report["engine_note"]
    assert [skipped["artifact"] for skipped in report["skipped"]] == [engine.path]


def test_a_full_disk_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file size fails the write in the kernel, as a full disk does."""
    command = ["prlimit", "--fsize=200000", sys.executable, "-m", "export", tiny_checkpoint, "--out", tmp_path / "m"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert re.search(r"could not be written.*File too large", only_error(Outcome(result.returncode, "", result.stderr)))
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nan_from_the_network_itself_is_said_and_nothing_is_written(run_export: Run, tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.layer1[0].bn1.weight.fill_(3e38)
    torch.save(network.state_dict(), tmp_path / "overflowing.pt")
    result = run_export(tmp_path / "overflowing.pt", "--out", tmp_path / "m")
    assert result.exit_code == 1, result.stderr
    assert "eager PyTorch FP32 itself" in result.stderr
    assert not (tmp_path / "m").exists()


def test_what_fp16_cannot_hold_stays_in_fp32_and_is_named(run_export: Run, tmp_path: Path) -> None:
    """Weights within FP16's range, activations beyond it."""
    network = tiny_network()
    with torch.no_grad():
        network.layer1[0].bn1.weight.fill_(6e4)
        network.layer1[0].bn1.bias.fill_(6e4)
    torch.save(network.state_dict(), tmp_path / "large.pt")
    guarded = run_export(tmp_path / "large.pt", "--fp16", "--out", tmp_path / "m")
    assert guarded.exit_code == 0, guarded.stderr
    assert re.search(r"warning: layer1\.0\.conv1 stays in FP32: .*65504", guarded.stderr)
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert "layer1.0.conv1" in [kept["layer"] for kept in report["fp16_kept_in_fp32"]]
    share = report["precision"]["model.fp16.onnx"]
    assert 0 < share["fp16_layers"] < share["layers"]
    assert "<code>layer1.0.conv1</code>: " in (tmp_path / "m" / "report.html").read_text()

    strict = run_export(tmp_path / "large.pt", "--fp16", "--strict-fp16", "--out", tmp_path / "strict")
    assert strict.exit_code == 1, strict.stderr
    assert re.search(r"error: --strict-fp16: .*layer1\.0\.conv1", strict.stderr)
    assert not (tmp_path / "strict").exists()


def test_layers_are_kept_in_fp32_by_their_names(run_export: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    kept = run_export(tiny_checkpoint, "--fp16", "--keep-fp32", r"layer4\.\d\.shortcut", "--out", tmp_path / "m")
    assert kept.exit_code == 0, kept.stderr
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert [layer["layer"] for layer in report["fp16_kept_in_fp32"]] == ["layer4.0.shortcut.0"]
    unknown = run_export(tiny_checkpoint, "--fp16", "--keep-fp32", "layer9", "--out", tmp_path / "other")
    assert "layer9" in only_error(unknown)
    alone = run_export(tiny_checkpoint, "--strict-fp16", "--out", tmp_path / "other")
    assert "add --fp16" in only_error(alone)


def test_an_export_below_its_bar_fails_says_where_and_writes_nothing(
    run_export: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold that goes wrong: one convolution's weights are half too large."""

    def wrong(*arguments: Any, **options: Any) -> FoldedNetwork:
        network = fold_network(*arguments, **options)
        with torch.no_grad():
            network.module.get_submodule("layer3.0.conv2").weight.mul_(1.5)
        return network

    monkeypatch.setattr("fuseline.export.pipeline.fold_network", wrong)
    result = run_export(tiny_checkpoint, "--out", tmp_path / "m")
    assert result.exit_code == 1
    assert re.search(r"error: .*not equal to PyTorch.*model\.onnx on onnxruntime.*logit range", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_grey_network_is_exported_too(run_export: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grey = trained_like(cifar_resnet18(width=8, in_channels=1))
    torch.save(grey.state_dict(), tmp_path / "grey.pt")
    result = run_export(tmp_path / "grey.pt", "--fp16", "--input-size", "32")
    assert result.exit_code == 0, result.stderr
    assert load_package(tmp_path / "grey").manifest.input.row_shape == (32, 32, 1)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"just some text\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_line(
    run_export: Run, tmp_path: Path, content: bytes, named: str
) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert named in only_error(run_export(tmp_path / "x.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_folder_in_place_of_a_checkpoint_is_one_clear_line(run_export: Run) -> None:
    assert "folder" in only_error(run_export("."))


def test_the_console_script_and_the_module_are_the_same_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("export")
    answers = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
        for command in ([script], [sys.executable, "-m", "export"])
    ]
    assert all("--fp16" in answer and "CHECKPOINT" in answer for answer in answers)


def test_images_that_the_network_was_not_trained_on_are_doubted(
    run_export: Run, shared_data: Path, tmp_path: Path
) -> None:
    """A real network with its own normalisation and with another: both give PyTorch's answers, one is wrong."""
    checkpoint, pictures = shared_data / "checkpoints" / "resnet20-12fca82f.th", shared_data / "cifar10-test"
    common = (checkpoint, "--images", pictures, "--max-images", 64, "--force", "--out", tmp_path / "m")
    right = run_export(*common, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    assert right.exit_code == 0, right.stderr
    assert "variance is off by a factor of 1.1" in right.stderr
    assert "not those that its BatchNorms saw" not in right.stderr
    wrong = run_export(*common, "--mean", "0,0,0", "--std", "1,1,1")
    assert wrong.exit_code == 0, wrong.stderr
    assert "not those that its BatchNorms saw in training" in wrong.stderr
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert any("BatchNorms saw in training" in warning for warning in report["warnings"])
