"""timm's config.json: what does nothing, or is told anyway, goes; what changes arithmetic is refused with a cure."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.loading.loading import NetworkSource, factory_arguments_from_texts, network_of
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.resnets import trained_like
from tests.refusals import refusal_of

NARROW = {"channels": (8, 16, 24, 32), "num_classes": 7}
HARMLESS: list[dict[str, Any]] = [
    {"drop_rate": 0.3, "drop_path_rate": 0.1, "drop_block_rate": 0.1, "zero_init_last": False},
    {"global_pool": "avg"},
    {"global_pool": "fast"},
    {"global_pool": "fastavg"},
    {"output_stride": 32, "aa_layer": None, "block_args": None, "replace_stem_pool": False},
    {"act_layer": "relu", "norm_layer": "batchnorm2d", "stem_type": "", "avg_down": False},
    {"act_layer": "ReLU", "norm_layer": "batch_norm"},
    {"stem_type": "deep", "stem_width": 8, "avg_down": True},
    {"stem_type": "deep_tiered", "stem_width": 8},
    {"down_kernel_size": 3},
    {"layers": [1, 1, 2, 1], "in_chans": 1},
    {"scriptable": True, "exportable": True, "checkpoint_path": "", "pretrained": False, "act_layer": None},
]
CHANGING: list[dict[str, Any]] = [
    {"global_pool": "max"},
    {"global_pool": "avgmax"},
    {"output_stride": 16},
    {"output_stride": 8},
    {"act_layer": "silu"},
    {"act_layer": "leaky_relu"},
    {"block_args": {"attn_layer": "se"}},
]


def saved(network: torch.nn.Module, folder: Path, arguments: dict[str, Any]) -> Path:
    save_for_hf(network, folder, model_args=arguments, safe_serialization=True)
    return folder


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "seresnet18", "resnetv2_18"])
def test_what_timm_saves_of_its_own_networks_is_recognised(name, tmp_path):
    network = trained_like(timm.create_model(name, **NARROW))
    folder = saved(network, tmp_path / "hub", {})
    assert json.loads((folder / "config.json").read_text())["model_args"]["global_pool"] == "avg"
    source = NetworkSource(folder)
    assert_equal_logits(network, network_of(read_checkpoint(folder), source), side=64)


@pytest.mark.parametrize("arguments", HARMLESS, ids=str)
def test_arguments_that_change_nothing_or_are_told_by_tensors_are_recognised(arguments):
    network = trained_like(timm.create_model("resnet18", **NARROW | arguments))
    config = {"architecture": "resnet18", "model_args": NARROW | arguments}
    recognised = recognise(network.state_dict(), config=json.loads(json.dumps(config)))
    assert_equal_logits(network, recognised, side=70, channels=arguments.get("in_chans", 3))


@pytest.mark.parametrize("arguments", CHANGING, ids=str)
def test_arguments_that_change_answers_are_refused_and_the_advice_gives_their_network(arguments, tmp_path):
    torch.manual_seed(0)
    network = trained_like(timm.create_model("resnet18", **NARROW | arguments))
    folder = saved(network, tmp_path / "hub", NARROW | arguments)
    checkpoint = read_checkpoint(folder)
    message = refusal_of(ArchitectureError, network_of, checkpoint, NetworkSource(folder))
    assert next(iter(arguments)) in message
    words = shlex.split(message.rpartition("such as ")[2])
    assert words[:2] == ["--factory", "timm:create_model"]
    texts = [value for flag, value in zip(words[2::2], words[3::2], strict=True) if flag == "--factory-arg"]
    source = NetworkSource(folder, factory=words[1], factory_arguments=factory_arguments_from_texts(texts))
    built = network_of(checkpoint, source, (64, 64))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(built.module(images), network(images))


@pytest.mark.parametrize(
    "arguments",
    [
        {"stem_type": "deep"},
        {"avg_down": True},
        {"stem_type": "space2depth"},
        {"conv_layer": "std"},
        {"never_met": 1},
        {"global_pool": ["max"]},
        {"preact": False},
        {"replace_stem_pool": True},
        # timm builds no ResNet of these from texts.
        {"aa_layer": "avgpool"},
        {"norm_layer": "frozenbatchnorm2d"},
    ],
    ids=str,
)
def test_what_tensors_contradict_or_nobody_knows_is_refused(arguments):
    tensors = timm.create_model("resnet18", **NARROW).state_dict()
    config = {"architecture": "resnet18", "model_args": arguments}
    assert f"config.json says {next(iter(arguments))}=" in refusal(tensors, config=config)


def test_a_fixed_stem_of_resnetv2_is_refused():
    tensors = timm.create_model("resnetv2_18", stem_type="fixed", stem_chs=8, **NARROW).state_dict()
    config = {"architecture": "resnetv2_18", "model_args": {"stem_type": "fixed"}}
    assert "stem_type=fixed" in refusal(tensors, config=config)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnetv2_18", {}),
        ("resnetv2_18d", {}),
        ("resnetv2_18", {"stem_type": "deep", "avg_down": True}),
        ("resnetv2_18", {"stem_type": "deep"}),
        ("resnetv2_18d", {"stem_type": ""}),
    ],
)
def test_average_pools_that_only_a_resnetv2s_own_name_tells_are_never_guessed(name, arguments, tmp_path):
    network = trained_like(timm.create_model(name, **NARROW | arguments))
    checkpoint = read_checkpoint(saved(network, tmp_path / "hub", NARROW | arguments))
    if len(arguments) != 1:
        assert_equal_logits(network, recognise(checkpoint.tensors, config=checkpoint.config), side=64)
        return
    message = refusal(checkpoint.tensors, config=checkpoint.config)
    assert "avg_down" in message
    assert f"--factory-arg model_name={name}" in message
