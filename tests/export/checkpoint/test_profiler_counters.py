"""Counts that profilers leave among the tensors are left aside; a scalar that a layer may compute with is not."""

import pytest
import torch
import torchvision
from torch import nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from tests.export.small_weights import assert_same, small_network, without_counters


def profiled(network: nn.Module) -> nn.Module:
    """As thop.profile leaves it: two float64 counts on every module."""
    for module in network.modules():
        module.register_buffer("total_ops", torch.full((1,), 118013952.0, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return network


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {f"module.{name}": t for name, t in state.items()}]
)
def test_thops_counts_are_left_aside_and_noted(tmp_path, wrap):
    network = torchvision.models.resnet18(num_classes=3)
    plain = without_counters(network.state_dict())
    torch.save({"state_dict": wrap(profiled(network).state_dict())}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert_same(checkpoint.tensors, plain)
    assert recognise(checkpoint.tensors).classes == 3
    assert any("which a profiler added, left aside" in note for note in checkpoint.notes)


def test_a_profiled_part_of_a_wrapper_is_found(tmp_path):
    inner = nn.Sequential()
    inner.add_module("model", torchvision.models.resnet18(num_classes=3))
    torch.save(profiled(inner).state_dict(), tmp_path / "model.pt")
    assert "conv1.weight" in read_checkpoint(tmp_path / "model.pt").tensors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv1.total_ops", torch.ones(4)),
        ("conv1.total_ops", torch.tensor([0.5])),
        ("conv1.total_ops", torch.tensor([-1.0])),
        ("conv1.total_ops", torch.ones(1, 1)),
        ("conv1.alpha", torch.ones(1, dtype=torch.float64)),
        ("conv1.scale", torch.zeros(1)),
        ("props", torch.zeros(1)),
        ("conv1.params.gain", torch.zeros(1)),
    ],
)
def test_what_a_layer_may_compute_with_stays(tmp_path, name, value):
    torch.save(small_network().state_dict() | {name: value}, tmp_path / "model.pt")
    assert name in read_checkpoint(tmp_path / "model.pt").tensors


def test_composers_state_is_read(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in small_network().state_dict().items()}
    optimizer = {"SGD": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
    content = {"state": {"model": state, "optimizers": optimizer, "run_name": "a"}, "rng": [{"python": (3, (1, 2))}]}
    torch.save(content, tmp_path / "ep1.pt")
    assert_same(read_checkpoint(tmp_path / "ep1.pt").tensors, without_counters(small_network().state_dict()))
