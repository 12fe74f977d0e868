import json
from pathlib import Path

import pytest
import torch
import torchvision

from export.architectures import recognise
from export.cli import inspect
from export.inspection import inspect_checkpoint, layers_of
from serve.errors import PackageError
from tests.export.resnets import cifar_resnet18


def test_the_cifar_resnet18_has_11173962_parameters_1728_of_them_in_conv1(tmp_path: Path) -> None:
    torch.save(cifar_resnet18().state_dict(), tmp_path / "r18.pt")
    found = inspect_checkpoint(tmp_path / "r18.pt")
    assert (found.parameters, found.classes, found.input_shape) == (11_173_962, 10, (3, 32, 32))
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    first = found.layers[0]
    assert (first.name, first.kernel, first.stride, first.output_shape) == ("conv1", (3, 3), 1, (64, 32, 32))
    assert first.parameters - 2 * 64 == 1_728
    assert first.multiply_adds == 1_728 * 32 * 32


def test_resnet50_has_25557032_parameters_and_4_09_g_multiply_adds() -> None:
    with torch.device("meta"):
        tensors = torchvision.models.resnet50().state_dict()
    network = recognise({name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}).module
    layers = layers_of(network, (3, 224, 224))
    assert sum(layer.parameters for layer in layers) == 25_557_032
    assert round(sum(layer.multiply_adds for layer in layers) / 1e9, 2) == 4.09


def test_a_checkpoint_is_shown_as_a_table_and_as_json(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(tiny_checkpoint, as_json=False)
    shown = capsys.readouterr().out
    assert "CIFAR ResNet-18" in shown
    assert "layer4.1.conv2" in shown
    assert "layer4.0.shortcut.0" in shown, "layers are named as in the checkpoint"
    inspect(tiny_checkpoint, as_json=True)
    plain = json.loads(capsys.readouterr().out)
    assert plain["multiply_adds"] == sum(layer["multiply_adds"] for layer in plain["layers"])


def test_a_package_is_shown_and_damage_is_an_error(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_package, tmp_path / "copy"))
    inspect(folder, as_json=False)
    assert "model.fp16.onnx" in capsys.readouterr().out
    (folder / "model.fp16.onnx").write_bytes(b"other")
    with pytest.raises(PackageError, match=r"model\.fp16\.onnx has 5 bytes"):
        inspect(folder, as_json=True)
    damage = json.loads(capsys.readouterr().out)["damage"]
    assert damage["model.onnx"] is None
    assert "sha256" in damage["model.fp16.onnx"]
