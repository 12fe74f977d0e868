"""Averaged weights: taken where they are asked for or the only ones, told of otherwise."""

import pytest
import torch

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError
from tests.export.small_weights import assert_same, small_network, without_counters

WEIGHTS = without_counters(dict(small_network().state_dict()))
AVERAGED = {name: tensor * 2 for name, tensor in WEIGHTS.items()}


def wrapped(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


CONTAINERS = {
    "timm": {"state_dict": WEIGHTS, "state_dict_ema": AVERAGED, "epoch": 3},
    "torchvision": {"model": WEIGHTS, "model_ema": wrapped("module.", AVERAGED) | {"n_averaged": torch.tensor(9)}},
    "mae": {"model": WEIGHTS, "model_ema": AVERAGED, "optimizer": {"state": {}}},
    "ema": {"model": WEIGHTS, "ema": AVERAGED},
    "ema_state_dict": {"model_state_dict": WEIGHTS, "ema_state_dict": AVERAGED},
    "ema_model": {"net": WEIGHTS, "ema_model": AVERAGED},
    "shadow": {"model": WEIGHTS, "ema": {"shadow": AVERAGED, "decay": 0.999}},
    "ema_pytorch": {
        "model": WEIGHTS,
        "ema": wrapped("ema_model.", AVERAGED) | wrapped("online_model.", WEIGHTS) | {"step": torch.tensor([3])},
    },
    "lightning WeightAveraging": {
        "state_dict": wrapped("model.", AVERAGED),
        "current_model_state": wrapped("model.", WEIGHTS),
        "averaging_state": {"n_averaged": torch.tensor(9)},
    },
    "lightning callback": {
        "state_dict": wrapped("model.", WEIGHTS),
        "callbacks": {"EMA{'every': 'a/b'}": {"ema_state_dict": AVERAGED}, "ModelCheckpoint": {"best": 0.5}},
    },
    "lightning submodule": {
        "state_dict": wrapped("model.", WEIGHTS)
        | wrapped("model_ema.module.", AVERAGED)
        | {"model_ema.decay": torch.tensor(0.9)}
    },
    "ema_pytorch in lightning": {
        "state_dict": wrapped("model.", WEIGHTS)
        | wrapped("ema.ema_model.", AVERAGED)
        | wrapped("ema.online_model.", WEIGHTS)
        | {"ema.initted": torch.tensor(True), "ema.step": torch.tensor(5)}
    },
    "ema_pytorch alone": wrapped("ema_model.", AVERAGED) | wrapped("online_model.", WEIGHTS),
    "both in DistributedDataParallel": {
        "state_dict": wrapped("module.model.", WEIGHTS) | wrapped("module.ema_model.", AVERAGED)
    },
    "both in a model": {"state_dict": wrapped("model.net.", WEIGHTS) | wrapped("model.ema_net.", AVERAGED)},
    "compiled": wrapped("_orig_mod.model.", WEIGHTS) | wrapped("_orig_mod.model_ema.module.", AVERAGED),
    "swa_model": {"model": WEIGHTS, "swa_model": wrapped("module.", AVERAGED) | {"n_averaged": torch.tensor(9)}},
    "swa_state_dict": {"state_dict": WEIGHTS, "swa_state_dict": AVERAGED},
    "averaged_model": {"model": WEIGHTS, "averaged_model": AVERAGED},
    "ema_params": {"model": WEIGHTS, "ema_params": AVERAGED},
    "average_model": wrapped("model.", WEIGHTS) | wrapped("_average_model.", AVERAGED),
    "bare": wrapped("net.", WEIGHTS) | wrapped("ema.module.", AVERAGED),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_plain_weights_are_taken_and_the_averaged_ones_told_of(tmp_path, name):
    torch.save(CONTAINERS[name], tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert_same(checkpoint.tensors, WEIGHTS)
    assert any("EMA weights" in note and "--ema takes them" in note for note in checkpoint.notes)


@pytest.mark.parametrize("name", CONTAINERS)
def test_averaged_weights_are_taken_where_they_are_preferred(tmp_path, name):
    torch.save(CONTAINERS[name], tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt", prefer_ema=True)
    assert_same(checkpoint.tensors, AVERAGED)
    assert any("EMA weights taken from" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "content", [{"state_dict_ema": AVERAGED, "epoch": 1}, wrapped("ema.", AVERAGED)], ids=["container", "names"]
)
def test_averaged_weights_are_taken_where_there_are_no_others(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    for prefer_ema in (False, True):
        checkpoint = read_checkpoint(tmp_path / "model.pt", prefer_ema=prefer_ema)
        assert_same(checkpoint.tensors, AVERAGED)
        assert any("EMA weights taken from" in note for note in checkpoint.notes)


def test_within_averaged_weights_the_plain_copy_is_never_taken(tmp_path):
    content = {"ema": wrapped("online_model.", WEIGHTS) | wrapped("ema_model.", AVERAGED)}
    torch.save(content, tmp_path / "model.pt")
    for prefer_ema in (False, True):
        assert_same(read_checkpoint(tmp_path / "model.pt", prefer_ema=prefer_ema).tensors, AVERAGED)


@pytest.mark.parametrize("content", [{"state_dict": WEIGHTS, "epoch": 1}, WEIGHTS, {"model": WEIGHTS, "ema": None}])
def test_averaged_weights_that_are_absent_are_refused_with_what_is_there(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no EMA weights, which --ema asks for; found .*leave --ema out"):
        read_checkpoint(tmp_path / "model.pt", prefer_ema=True)


def test_statistics_that_were_not_averaged_come_from_the_plain_weights(tmp_path):
    """Code that averages `named_parameters()` alone saves no running statistics."""
    parameters = {name: tensor for name, tensor in AVERAGED.items() if "running" not in name}
    torch.save({"state_dict": wrapped("module.", WEIGHTS), "ema": {"shadow": parameters}}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt", prefer_ema=True)
    expected = parameters | {name: tensor for name, tensor in WEIGHTS.items() if "running" in name}
    assert_same(checkpoint.tensors, expected)
    assert "the EMA weights lack BatchNorm's statistics: 2 taken from the plain weights" in checkpoint.notes
