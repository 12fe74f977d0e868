"""Modules that were pickled whole and TorchScript files: their state dict is read, none of their code is run."""

import sys
import types
import warnings

import pytest
import torch
import torchvision
from torch import nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError
from tests.export.small_weights import assert_same, small_network, without_counters

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])


class Strided(nn.Module):
    """A network with settings that tensors don't tell, a buffer that isn't saved, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.pool = nn.MaxPool2d(2)
        self.twice = nn.ModuleList([nn.Linear(4, 4)] * 2)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left_out", torch.ones(2), persistent=False)
        self.register_parameter("nothing", None)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        for layer in self.twice:
            x = layer(x)
        return self.fc(x)


@FORMS
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}], ids=["bare", "in-a-dict"])
def test_a_pickled_module_gives_its_state_dict(tmp_path, zipped, wrap):
    path = tmp_path / "it's mine.pt"
    network = Strided()
    torch.save(wrap(network), path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(network.state_dict()))
    assert checkpoint.counters.keys() == {"norm.num_batches_tracked"}
    assert any("Strided`; its code was not run" in note for note in checkpoint.notes)
    assert not any("left inert" in note for note in checkpoint.notes)


def test_the_settings_of_its_layers_are_told(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.DataParallel(Strided()), path)
    checkpoint = read_checkpoint(path)
    settings = checkpoint.layer_settings
    assert (
        settings["conv"].items()
        >= {
            "type": "Conv2d",
            "stride": (2, 2),
            "padding": (1, 1),
            "dilation": (1, 1),
            "groups": 1,
            "kernel_size": (3, 3),
        }.items()
    )
    assert settings["norm"].items() >= {"type": "BatchNorm2d", "eps": 1e-3}.items()
    assert settings["pool"].items() >= {"type": "MaxPool2d", "kernel_size": 2}.items()
    assert settings["fc"].items() >= {"type": "Linear", "in_features": 4, "out_features": 2}.items()
    assert {name.rpartition(".")[0] for name in checkpoint.tensors} - {""} <= settings.keys()
    assert settings[""] == {
        "buffers": ["left_out"],
        "classes": ["torch.nn.parallel.data_parallel.DataParallel", f"{__name__}.Strided"],
    }


def doubled(_module, inputs):
    return (inputs[0] * 2,)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_hooks_are_told(tmp_path, wrap):
    network = wrap(small_network())
    network.register_forward_pre_hook(doubled)
    torch.save(network, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").layer_settings[""]["hooks"] == ["_forward_pre_hooks"]


def test_shared_modules_times_tensors_are_bounded(tmp_path):
    layer = nn.ParameterDict({f"p{i}": nn.Parameter(torch.ones(1)) for i in range(300)})
    torch.save(nn.ModuleList([layer] * 400), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="more than 100000 tensors"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_state_dict_tells_no_settings(tmp_path):
    torch.save(Strided().state_dict(), tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").layer_settings == {}


def test_a_module_of_code_that_is_not_here(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    module = types.ModuleType("their_code")
    module.Net = type("Net", (nn.Sequential,), {"__module__": "their_code"})
    monkeypatch.setitem(sys.modules, "their_code", module)
    network = module.Net(*small_network())
    torch.save(network, path)
    monkeypatch.delitem(sys.modules, "their_code")
    assert_same(read_checkpoint(path).tensors, without_counters(network.state_dict()))
    assert "their_code" not in sys.modules


def test_a_traced_module_of_torch_fx(tmp_path):
    path = tmp_path / "model.pt"
    traced = torch.fx.symbolic_trace(Strided())
    torch.save(traced, path)
    assert_same(read_checkpoint(path).tensors, without_counters(traced.state_dict()))


def test_a_module_within_itself_is_refused(tmp_path):
    network = Strided()
    network._modules["loop"] = network
    torch.save(network, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds itself"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_file_gives_its_state_dict(tmp_path, how):
    path = tmp_path / "model.pt"
    network = torchvision.models.resnet18(num_classes=3).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(network) if how == "script" else torch.jit.trace(network, torch.zeros(1, 3, 32, 32))
        script.save(str(path))
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(network.state_dict()))
    assert len(checkpoint.counters) == 20
    assert checkpoint.layer_settings == {}
    assert any("its code was not run" in note for note in checkpoint.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_other_floats(tmp_path, dtype):
    path = tmp_path / "model.pt"
    network = small_network().to(dtype)
    torch.save(network, path)
    assert_same(read_checkpoint(path).tensors, without_counters(network.state_dict()))
