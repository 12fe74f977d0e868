"""Labels and normalisation out of Lightning's hyper-parameters, in whatever class they were saved."""

import argparse
import functools
import sys
import types
from pathlib import Path

import pytest
import torch

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from tests.export.small_weights import assert_same, small_network, without_counters

WEIGHTS = without_counters(dict(small_network().state_dict()))
SETTINGS = {"class_names": ["cat", "dog"], "mean": [0.5, 0.5, 0.5], "std": (0.25, 0.25, 0.25), "lr": 0.1}
EXPECTED = {"labels": ["cat", "dog"], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


class AttributeDict(dict):
    """As lightning.fabric.utilities.data.AttributeDict, a dict with a class."""


def lightning(path: Path, **beside: object) -> Path:
    torch.save(
        {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model.{name}": tensor for name, tensor in WEIGHTS.items()},
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "dirpath": "/x"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
            "lr_schedulers": [],
            **beside,
        },
        path,
    )
    return path


HYPER_PARAMETERS = {
    "dict": SETTINGS,
    "attribute-dict": AttributeDict(SETTINGS),
    "namespace": argparse.Namespace(**SETTINGS),
    "nested": {"data": SETTINGS, "optimizer": functools.partial(torch.optim.SGD, lr=0.1), "root": Path("/data")},
    "nested-namespace": AttributeDict(data=argparse.Namespace(**SETTINGS), net=small_network()),
}


@pytest.mark.parametrize("name", HYPER_PARAMETERS)
@pytest.mark.parametrize("key", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_hyper_parameters_give_what_they_know(tmp_path, name, key):
    checkpoint = read_checkpoint(lightning(tmp_path / "last.ckpt", **{key: HYPER_PARAMETERS[name]}))
    assert checkpoint.metadata == EXPECTED
    assert_same(checkpoint.tensors, WEIGHTS)


def node(module: types.ModuleType, name: str, **state: object) -> object:
    kind = getattr(module, name, None) or type(name, (), {"__module__": module.__name__})
    setattr(module, name, kind)
    made = kind()
    made.__dict__.update(state)
    return made


def test_omegaconf_nodes_are_read_as_what_they_hold(tmp_path, monkeypatch):
    """Their pickled form (omegaconf/basecontainer.py): `_content` of containers and `_val` of values, in the state."""
    dicts, lists, values = (types.ModuleType(f"omegaconf.{name}") for name in ("dictconfig", "listconfig", "nodes"))
    package = types.ModuleType("omegaconf")
    for module in (package, dicts, lists, values):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def as_node(value: object) -> object:
        if isinstance(value, dict):
            return node(dicts, "DictConfig", _content={k: as_node(v) for k, v in value.items()}, _parent=None)
        if isinstance(value, list | tuple):
            return node(lists, "ListConfig", _content=[as_node(item) for item in value], _parent=None)
        return node(values, "AnyNode", _val=value, _parent=None)

    path = lightning(tmp_path / "last.ckpt", hyper_parameters={"cfg": as_node(SETTINGS)})
    for module in (package, dicts, lists, values):
        monkeypatch.delitem(sys.modules, module.__name__)
    assert read_checkpoint(path).metadata == EXPECTED


@pytest.mark.parametrize(
    "labels", [{0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, {"dog": 1, "cat": 0}, ["cat", "dog"], ("cat", "dog")]
)
def test_labels_may_be_a_map(tmp_path, labels):
    torch.save({"state_dict": WEIGHTS, "class_to_idx": labels}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").metadata == {"labels": ["cat", "dog"]}


@pytest.mark.parametrize("labels", [{0: "cat", 2: "dog"}, {"cat": 0, "dog": 0}, {"a": "b"}, {}, {0: 1.5}])
def test_a_map_that_leaves_classes_out_is_left_out(tmp_path, labels):
    torch.save({"state_dict": WEIGHTS, "labels": labels}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert checkpoint.metadata == {}
    assert any(note.startswith("`labels` beside the weights is left out") for note in checkpoint.notes)


def test_a_count_of_classes_is_no_list_of_labels(tmp_path):
    checkpoint = read_checkpoint(
        lightning(tmp_path / "last.ckpt", hyper_parameters={"classes": 10, "mean": "imagenet"})
    )
    assert checkpoint.metadata == {}
    assert [note for note in checkpoint.notes if "left out" in note] == [
        "`mean` in `hyper_parameters` is left out: expected a list of finite numbers"
    ]


def test_what_the_recipe_wrote_beside_the_weights_wins(tmp_path):
    path = lightning(tmp_path / "last.ckpt", hyper_parameters=SETTINGS, labels=["lion", "wolf"])
    assert read_checkpoint(path).metadata["labels"] == ["lion", "wolf"]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("resize_shorter_side", 256, True),
        ("resize_shorter_side", 0, False),
        ("interpolation", "bicubic", True),
        ("interpolation", "nearest", False),
        ("interpolation", 3, False),
    ],
)
def test_how_images_are_resized_is_carried(tmp_path, key, value, kept):
    torch.save({"state_dict": WEIGHTS, key: value}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").metadata == ({key: value} if kept else {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [10**400, 0, 0]),
        ("std", [10**400, 1, 1]),
        ("mean", [float("inf")] * 3),
        ("input_size", 10**400),
        ("resize_shorter_side", 8193),
        ("labels", ["cat", "\ud800"]),
    ],
    ids=["mean", "std", "infinite", "400 digits", "resize", "surrogate"],
)
def test_what_no_package_could_hold_is_left_out_and_said(tmp_path, key, value):
    torch.save({"state_dict": WEIGHTS, key: value}, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert checkpoint.metadata == {}
    assert any(f"`{key}` beside the weights is left out" in note for note in checkpoint.notes)
