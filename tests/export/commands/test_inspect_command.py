import io
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fuseline.export.commands.inspect_command import inspect
from fuseline.serve.errors import ArchitectureError, CheckpointError, InputError
from tests.export.recognition.torchscript_files import saved
from tests.export.resnets import tiny_network


def test_a_checkpoint_is_shown_and_drawn(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, filters = tmp_path / "report.html", tmp_path / "filters.PNG"
    inspect(tiny_checkpoint, html=html, filters=filters, as_json=True)
    assert json.loads(capsys.readouterr().out)["architecture"].startswith("CIFAR ResNet-18")
    assert html.read_text().startswith("<!doctype html>")
    assert Image.open(io.BytesIO(filters.read_bytes())).format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filters.PNG", "report.html"]


def test_a_package_is_shown_and_drawn(tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(tiny_package, html=tmp_path / "report.html", filters=tmp_path / "filters.png")
    assert "model.fp16.onnx" in capsys.readouterr().out
    assert "Folds applied at export" in (tmp_path / "report.html").read_text()


def test_a_real_checkpoint(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(shared_data / "checkpoints" / "resnet20-12fca82f.th", filters=tmp_path / "filters.png")
    out = capsys.readouterr().out
    assert "ResNet-20" in out
    assert "269,722 parameters" in out


@pytest.mark.parametrize(
    ("html", "filters", "message"),
    [
        ("no/where.html", None, "there is no folder"),
        ("", None, "a name that ends in .html was expected"),
        ("folder.html", None, "this is a folder"),
        (None, "filters.jpg", "--filters .*ends in .png"),
        (None, "filters", "ends in .png"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_first(
    html: str | None, filters: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.html").mkdir()
    paths = {
        name: None if given is None else tmp_path / given for name, given in {"html": html, "filters": filters}.items()
    }
    with pytest.raises(InputError, match=message):
        inspect(tmp_path / "not read.pt", **paths)


def test_a_failed_write_leaves_what_was_there(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fuseline.export.commands.output_file.os.fdopen", full)
    with pytest.raises(InputError, match=r"--html .*report\.html can't be written: No space left"):
        inspect(tiny_checkpoint, html=target)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_others_may_read_what_is_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        inspect(tiny_checkpoint, filters=tmp_path / "filters.png", as_json=True)
    finally:
        os.umask(mask)
    assert (tmp_path / "filters.png").stat().st_mode & 0o777 == 0o644


def test_flags_about_checkpoints_do_not_go_with_a_package(tiny_package: Path) -> None:
    with pytest.raises(InputError, match="--input-size, --ema: .* is a model package"):
        inspect(tiny_package, input_size="64", ema=True)


def test_drawing_a_damaged_package_sayswhy_not_folded(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_package, tmp_path / "copy"))
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"model\.onnx has 5 bytes"):
        inspect(folder, html=tmp_path / "report.html")
    assert "model.onnx" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_package_is_read_as_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def network_without_convolutions() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def test_the_users_own_network_and_one_without_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handmade.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(network_without_convolutions().state_dict(), tmp_path / "x.pt")
    flags = {"factory": "handmade:make", "input_size": "32"}
    inspect(tmp_path / "x.pt", **flags)
    assert "30,730 parameters" in capsys.readouterr().out
    with pytest.raises(InputError, match="no convolution whose weights could be drawn"):
        inspect(tmp_path / "x.pt", filters=tmp_path / "filters.png", **flags)
    assert not (tmp_path / "filters.png").exists()


def test_what_a_refusal_says_to_assume_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a TorchScript file, which tells that it strides otherwise."""
    network = tiny_network()
    for stage in network.stages[1:]:
        block = network.get_submodule(stage)[0]
        block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
    path = saved(network, tmp_path / "net.pt", "trace", side=32)
    with pytest.raises(ArchitectureError, match="--assume stride=conv2"):
        inspect(path)
    inspect(path, assume=["stride=conv2,normalization=cifar10"])
    assert "strides on convolution 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="nothing of this network is called strides"):
        inspect(path, assume=["stride=conv2", "strides=conv2"])
