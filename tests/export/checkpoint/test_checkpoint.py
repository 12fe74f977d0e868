"""Reading checkpoints: every accepted form and what is noted of it."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from tests.export.small_weights import assert_same, small_network, without_counters

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(small_network().state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_reads_a_bare_state_dict(tmp_path, weights, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (checkpoint.path, checkpoint.notes, checkpoint.metadata) == (path, (), {})


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"], ids=["named so", "named .pt"])
def test_reads_safetensors_whatever_its_name(tmp_path, weights, name):
    path = tmp_path / name
    save_file(weights, path, metadata={"labels": '["cat", "dog"]', "mean": "[0.5, 0.5, 0.5]", "format": "pt"})
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert checkpoint.metadata == {"labels": ["cat", "dog"], "mean": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "model_state_dict", "net_state_dict", "params", "student", "ema"]
)
def test_takes_the_weights_out_of_a_container(tmp_path, weights, key):
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, key: weights, "optimizer": {"state": {0: torch.zeros(2)}}}, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert f"`{key}`" in checkpoint.notes[0]


def test_takes_the_weights_out_of_nested_containers_and_says_what_was_passed_over(tmp_path, weights):
    path = tmp_path / "model.pt"
    other = {name: tensor * 0 for name, tensor in weights.items()}
    torch.save({"ema": other, "model": {"net": weights}}, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert checkpoint.notes == (
        "weights taken from `model`; EMA weights are in `ema`: --ema takes them",
        "weights taken from `net`",
    )


def test_a_container_key_without_tensors_is_passed_over(tmp_path, weights):
    path = tmp_path / "model.pt"
    torch.save({"model": {"depth": 18}, "net": weights}, path)
    assert_same(read_checkpoint(path).tensors, without_counters(weights))


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "backbone.", "_orig_mod.module.", "model.backbone.module.model."]
)
def test_strips_prefixes_that_every_name_has(tmp_path, weights, prefix):
    path = tmp_path / "model.pt"
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    stripped = [note.split("`")[1] for note in checkpoint.notes]
    assert "".join(stripped) == prefix


def test_keeps_a_prefix_that_one_name_lacks(tmp_path, weights):
    path = tmp_path / "model.pt"
    mixed = {f"backbone.{name}": tensor for name, tensor in weights.items()} | {"head.weight": torch.ones(2, 2)}
    torch.save(mixed, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(mixed))
    assert checkpoint.notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_turns_floats_into_float32_and_says_so(tmp_path, weights, dtype):
    path = tmp_path / "model.pt"
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(cast, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(cast))
    assert checkpoint.notes == (f"8 tensors of {str(dtype).removeprefix('torch.')} turned into float32",)


def test_parameters_come_out_as_plain_tensors(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(dict(small_network().named_parameters()), path)
    assert not any(tensor.requires_grad for tensor in read_checkpoint(path).tensors.values())


def test_carries_what_the_training_recipe_wrote_beside_the_weights(tmp_path, weights):
    path = tmp_path / "model.pt"
    beside = {
        "labels": ["cat", "dog"],
        "mean": (0.1, 0.2, 0.3),
        "std": torch.tensor([0.5, 0.5, 0.25]),
        "input_size": 32,
    }
    torch.save({"state_dict": weights, **beside, "epoch": 30, "optimizer": {"lr": 0.1}}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == {
        "labels": ["cat", "dog"],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.25],
        "input_size": 32,
    }
    assert json.loads(json.dumps(checkpoint.metadata)) == checkpoint.metadata


@pytest.mark.parametrize("key", ["classes", "class_names"])
def test_labels_may_have_other_keys(tmp_path, weights, key):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": weights, key: ["cat", "dog"]}, path)
    assert read_checkpoint(path).metadata == {"labels": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", ["cat", 1]),
        ("labels", "cat"),
        ("labels", []),
        ("mean", 0.5),
        ("mean", [math.nan]),
        ("mean", [True]),
        ("std", [0.5, 0.0, 0.5]),
        ("std", ["0.5"]),
        ("input_size", 0),
        ("input_size", 32.5),
        ("input_size", True),
    ],
)
def test_leaves_malformed_metadata_out_and_says_so(tmp_path, weights, key, value):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": weights, key: value}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == {}
    assert any(note.startswith(f"`{key}` beside the weights is left out") for note in checkpoint.notes)


def test_reads_the_trained_resnet20():
    path = SHARED / "checkpoints" / "resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip("shared/data is not beside this checkout")
    checkpoint = read_checkpoint(path)
    assert checkpoint.sha256.startswith("12fca82f")
    assert checkpoint.tensors["conv1.weight"].shape == (16, 3, 3, 3)
    assert checkpoint.notes == ("weights taken from `state_dict`", "prefix `module.` stripped from every name")


def test_an_averaged_model_of_torch_is_read(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(small_network())
    torch.save(averaged.state_dict(), tmp_path / "ema.pt")
    checkpoint = read_checkpoint(tmp_path / "ema.pt")
    assert_same(checkpoint.tensors, without_counters(averaged.module.state_dict()))
    assert any("n_averaged" in note for note in checkpoint.notes)
