"""Tensors that are no ResNet, or not exactly one: each is refused by name, with the nearest architecture."""

import random

import pytest
import torch
import torchvision
from torch import Tensor

from export.architectures import recognise
from serve.errors import ArchitectureError
from tests.export.resnets import HandWrittenResNet34, cifar_resnet18, on_meta

RESNET18 = on_meta(torchvision.models.resnet18)
RESNET18_WEIGHTS = [name for name in RESNET18 if not name.endswith("num_batches_tracked")]


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(ArchitectureError) as caught:
        recognise(tensors)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_each_missing_tensor_is_named_with_the_nearest_architecture():
    for name in RESNET18_WEIGHTS:
        message = refusal({other: tensor for other, tensor in RESNET18.items() if other != name})
        shape = (1000, *RESNET18[name].shape[1:]) if name.startswith("fc") else tuple(RESNET18[name].shape)
        assert f"missing: {name} {shape}." in message
        assert "nearest: torchvision resnet18" in message


def test_a_misshapen_tensor_is_named_with_both_shapes():
    assert len(RESNET18_WEIGHTS[:-2:3]) == 34
    for name in RESNET18_WEIGHTS[:-2:3]:
        shape = tuple(RESNET18[name].shape)
        wrong = (shape[0] + 1, *shape[1:])
        message = refusal(RESNET18 | {name: torch.empty(wrong, device="meta")})
        assert f"misshapen: {name} is {wrong}, expected {shape}." in message
        assert "nearest: torchvision resnet18" in message


def test_a_classifier_that_contradicts_itself_is_refused():
    assert "misshapen: fc.bias is (7,), expected (1000,)" in refusal(
        RESNET18 | {"fc.bias": torch.empty(7, device="meta")}
    )


def test_each_left_over_tensor_is_named():
    extra = {"layer1.0.conv3.weight": torch.ones(2, 2), "aux.weight": torch.ones(3)}
    message = refusal(RESNET18 | extra)
    assert "left over: layer1.0.conv3.weight (2, 2), aux.weight (3,)." in message
    assert "nearest: torchvision resnet18" in message


def test_a_missing_tensor_goes_by_the_checkpoints_own_name():
    tensors = on_meta(HandWrittenResNet34, bias=True)
    del tensors["layer3.0.shortcut.1.running_mean"]
    assert "missing: layer3.0.shortcut.1.running_mean (256,)." in refusal(tensors)


def test_missing_shortcuts_of_an_imagenet_resnet_are_not_taken_for_option_a():
    message = refusal({name: tensor for name, tensor in RESNET18.items() if "downsample" not in name})
    assert "missing: layer2.0.downsample.0.weight (128, 64, 1, 1)" in message
    assert "and 9 more" in message


@pytest.mark.parametrize(
    ("gone", "named"),
    [("layer3.", "layer3.0"), ("layer1.0.", "layer1.0"), ("layer2.0.", "layer2.0")],
)
def test_a_missing_stage_or_block_is_named(gone, named):
    assert f"begins with {named}," in refusal(
        {name: tensor for name, tensor in RESNET18.items() if not name.startswith(gone)}
    )


def test_a_backbone_without_its_classifier_is_refused():
    assert "number of classes, the rows of fc.weight, can't be told" in refusal(
        {k: v for k, v in RESNET18.items() if not k.startswith("fc.")}
    )


def test_an_unknown_stem_is_misshapen():
    message = refusal(RESNET18 | {"conv1.weight": torch.empty(64, 3, 5, 5, device="meta")})
    assert "conv1.weight is (64, 3, 5, 5), expected (64, 3, 7, 7)" in message


def test_integer_weights_are_refused():
    tensors = recognisable() | {"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3, dtype=torch.int8)}
    assert "layer1.0.conv1.weight is torch.int8" in refusal(tensors)


def recognisable() -> dict[str, Tensor]:
    return dict(cifar_resnet18(width=4).state_dict())


@pytest.mark.parametrize("shape", [(), (0,), (0, 4, 3, 3), (4,) * 9])
def test_absurd_shapes_are_misshapen(shape):
    for name in ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight"):
        assert f"{name} is {shape}, expected" in refusal(recognisable() | {name: torch.zeros(shape)})


def test_damaged_shapes_never_raise_anything_else():
    make = torchvision.models.ResNet
    whole = make(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 3, groups=4, width_per_group=2).state_dict()
    rng = random.Random(0)
    for _ in range(150):
        tensors = dict(whole)
        for name in rng.sample(list(whole), rng.randint(1, 40)):
            shape = [rng.choice((size, size, 1, 3, size + 1)) for size in whole[name].shape]
            tensors[name] = torch.empty(shape, device="meta")
            if rng.random() < 0.3:
                del tensors[name]
        assert refusal(tensors)


def test_absurd_block_numbers_are_refused_at_once():
    for number in ("9999", "9" * 5000):
        message = refusal(recognisable() | {f"layer1.{number}.conv1.weight": torch.zeros(4, 4, 3, 3)})
        assert "layer1.2" in message or "left over" in message


def test_a_bert_is_refused_with_what_was_seen():
    tensors = {
        "bert.embeddings.word_embeddings.weight": torch.zeros(30, 4),
        "bert.embeddings.position_ids": torch.arange(9),
    }
    for layer in range(12):
        for part in ("query", "key", "value"):
            tensors[f"bert.encoder.layer.{layer}.attention.self.{part}.weight"] = torch.zeros(4, 4)
    message = refusal(tensors)
    assert "no ResNet that Fuseline knows" in message
    assert "bert.embeddings.word_embeddings.weight (30, 4)" in message
    assert "and 32 more" in message
    assert "layer1.0.conv1.weight" in message


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "densenet121", "mobilenet_v2"])
def test_other_networks_are_refused(name):
    assert "no ResNet that Fuseline knows" in refusal(on_meta(getattr(torchvision.models, name)))


def test_a_small_network_with_some_of_the_names_is_refused():
    tensors = {"conv1.weight": torch.zeros(6, 3, 5, 5), "fc.weight": torch.zeros(10, 6), "fc.bias": torch.zeros(10)}
    assert "no ResNet that Fuseline knows" in refusal(tensors)
    assert "it holds no weights" in refusal({})
