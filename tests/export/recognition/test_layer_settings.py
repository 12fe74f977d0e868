"""What a checkpoint of whole modules says of its layers is held against the recognised network."""

import pytest
import timm
import torchvision
from torch import nn

from fuseline.export.recognition.architectures import recognise
from fuseline.export.recognition.layer_settings import apply_layer_settings
from fuseline.export.recognition.programs.program_check import EVERYTHING
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.recognition.layer_settings import settings_of
from tests.export.resnets import cifar_resnet18, trained_like


def test_settings_that_agree_change_nothing():
    network = trained_like(torchvision.models.resnet18(num_classes=5))
    recognised = recognise(network.state_dict(), layer_settings=settings_of(network))
    assert recognised.evidence == recognise(network.state_dict()).evidence
    assert_equal_logits(network, recognised, side=64)


def test_batchnorms_eps_is_taken():
    network = trained_like(torchvision.models.resnet18(norm_layer=lambda width: nn.BatchNorm2d(width, eps=1e-2)))
    recognised = recognise(network.state_dict(), layer_settings=settings_of(network))
    assert recognised.evidence[-1] == "BatchNorm's eps of 0.01 taken from the checkpoint's own layers"
    assert_equal_logits(network, recognised, side=64)


@pytest.mark.parametrize(
    ("layer", "changed", "named"),
    [
        ("conv1", {"stride": (2, 2)}, "conv1 has stride (2, 2) where that network has stride 1"),
        ("layer1.0.conv1", {"padding": "valid"}, "layer1.0.conv1 has padding valid where that network has padding 1"),
        ("layer2.0.conv1", {"dilation": 2}, "has dilation 2 where that network has dilation 1"),
        ("layer2.0.conv1", {"groups": 2}, "has groups 2"),
        ("layer2.0.shortcut.0", {"kernel_size": [3, 1]}, "has kernel_size [3, 1]"),
        ("bn1", {"type": "InstanceNorm2d"}, "bn1 is a InstanceNorm2d where that network has a BatchNorm2d"),
        ("act", {"type": "SiLU"}, "act is a SiLU where that network has no such layer"),
        ("pool", {"type": "MaxPool2d", "kernel_size": 3}, "pool is a MaxPool2d where that network has no such layer"),
    ],
)
def test_settings_that_contradict_are_refused(layer, changed, named):
    network = cifar_resnet18(width=4)
    settings = settings_of(network)
    settings[layer] = settings.get(layer, {}) | changed
    message = refusal(network.state_dict(), layer_settings=settings)
    assert named in message
    assert "--factory package.module:function" in message


@pytest.mark.parametrize("changed", [{"ceil_mode": True}, {"padding": 0}, {"kernel_size": 2}])
def test_another_max_pool_is_seen(changed):
    network = torchvision.models.resnet18(num_classes=5)
    settings = settings_of(network)
    settings["maxpool"] |= changed
    assert f"maxpool has {next(iter(changed))}" in refusal(network.state_dict(), layer_settings=settings)


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50"])
def test_anti_aliasing_pools_are_seen(name):
    network = timm.create_model(name, channels=(8, 8, 8, 8), num_classes=5)
    assert recognise(network.state_dict()).spec.pooled_shortcuts is False
    assert "layer2.0" in refusal(network.state_dict(), layer_settings=settings_of(network))


@pytest.mark.parametrize("name", ["seresnet18", "resnetv2_18d", "resnet26t"])
def test_timms_own_layers_agree(name):
    network = trained_like(timm.create_model(name, channels=(8, 8, 8, 8), num_classes=5))
    assert_equal_logits(network, recognise(network.state_dict(), layer_settings=settings_of(network)), side=64)


def test_a_stride_on_the_1x1_convolution_is_seen():
    network = torchvision.models.resnet50(num_classes=5)
    network.layer2[0].conv1.stride, network.layer2[0].conv2.stride = (2, 2), (1, 1)
    message = refusal(network.state_dict(), layer_settings=settings_of(network))
    assert "layer2.0.conv1 has stride (2, 2)" in message


CHANGES = {
    "maximum": ("avgpool is a AdaptiveMaxPool2d", {"avgpool": nn.AdaptiveMaxPool2d(1)}),
    "several-cells": ("avgpool is a AdaptiveAvgPool2d", {"avgpool": nn.AdaptiveAvgPool2d(2)}),
    "no-max-pool": ("has no MaxPool2d", {"maxpool": nn.Identity()}),
    "average": ("maxpool is a AvgPool2d", {"maxpool": nn.AvgPool2d(3, 2, 1)}),
    "unknown": ("relu is a GELUActivation", {"relu": type("GELUActivation", (nn.Module,), {})()}),
    "softmax": ("avgpool is a Softmax", {"avgpool": nn.Softmax(1)}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_layers_without_weights_that_compute_something_else_are_refused(case):
    said, changed = CHANGES[case]
    network = torchvision.models.resnet18(num_classes=5)
    for name, layer in changed.items():
        setattr(network, name, layer)
    message = refusal(network.state_dict(), layer_settings=settings_of(network))
    assert said in message
    assert "--factory package.module:function" in message


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Sigmoid(), nn.Softmax(0)])
def test_an_activation_behind_the_classifier_is_refused(layer):
    network = torchvision.models.resnet18(num_classes=5)
    network.fc = nn.Sequential(nn.Dropout(), network.fc, layer)
    assert f"fc.2 is a {type(layer).__name__}" in refusal(network.state_dict(), layer_settings=settings_of(network))


def test_dropout_before_the_classifier_and_a_loss_are_no_matter():
    network = trained_like(torchvision.models.resnet18(num_classes=5))
    network.fc = nn.Sequential(nn.Dropout(), network.fc)
    network.criterion = nn.CrossEntropyLoss()
    assert_equal_logits(network.eval(), recognise(network.state_dict(), layer_settings=settings_of(network)), side=64)


def test_another_padding_mode_is_refused():
    network = torchvision.models.resnet18(num_classes=5)
    network.conv1.padding_mode = "reflect"
    said = "conv1 has padding_mode reflect"
    assert said in refusal(network.state_dict(), layer_settings=settings_of(network))


@pytest.mark.parametrize(("added", "said"), [({"hooks": ["_forward_hooks"]}, "hooks"), ({"buffers": ["mean"]}, "mean")])
@pytest.mark.parametrize("layer", ["", "layer1.0"])
def test_hooks_and_unsaved_buffers_are_refused(layer, added, said):
    network = torchvision.models.resnet18(num_classes=5)
    settings = settings_of(network)
    settings[layer] = settings.get(layer, {}) | added
    message = refusal(network.state_dict(), layer_settings=settings)
    assert said in message
    assert "--factory package.module:function" in message


def test_the_forward_of_an_unknown_class_is_said_to_be_unread():
    network = torchvision.models.resnet18(num_classes=5)
    for name, sentences in (("mine.Net", 1), ("torchvision.models.resnet.ResNet", 0)):
        evidence = recognise(
            network.state_dict(), layer_settings=settings_of(network) | {"": {"classes": [name]}}
        ).evidence
        assert sum("mine.Net was not read" in sentence for sentence in evidence) == sentences


POOLS = {
    "fixed": (nn.AvgPool2d(7), (224, 224)),
    "of-stride-1": (nn.AvgPool2d(7, stride=1), (224, 224)),
    "oblong": (nn.AvgPool2d((4, 5)), (128, 160)),
    "adaptive": (nn.AdaptiveAvgPool2d(1), None),
}


@pytest.mark.parametrize("case", POOLS)
def test_a_pool_of_a_fixed_size_tells_the_input_size(case):
    pool, size = POOLS[case]
    network = torchvision.models.resnet18(num_classes=5)
    network.avgpool = pool
    assert recognise(network.state_dict(), layer_settings=settings_of(network)).implied_input_size == size
    assert recognise(network.state_dict()).implied_input_size is None


def test_a_small_networks_pool_tells_its_input_size():
    network = cifar_resnet18(width=4)
    network.pool = nn.AvgPool2d(4)
    assert recognise(network.state_dict(), layer_settings=settings_of(network)).implied_input_size == (32, 32)


CLASSES = {
    "known": ({"": {"classes": ["torchvision.models.resnet.ResNet"]}}, True, EVERYTHING),
    "own": ({"": {"classes": ["mine.Net"]}}, True, {"strides", "eps", "activations", "pools"}),
    "own-block": (
        {"layer1.0": {"class": "mine.Block", "type": "Block"}},
        True,
        {"strides", "eps", "activations", "pools"},
    ),
    "functional": ({"": {"classes": ["mine.Net"]}}, False, {"strides", "eps", "pools"}),
}


@pytest.mark.parametrize("case", CLASSES)
def test_layers_settle_what_they_tell_and_a_known_forward_the_rest(case):
    added, with_relus, settled = CLASSES[case]
    network = torchvision.models.resnet18(num_classes=5)
    settings = settings_of(network) | added
    if not with_relus:
        settings = {name: found for name, found in settings.items() if found.get("type") != "ReLU"}
    layer_names = {name: name for name, child in network.named_modules() if [*child.parameters(recurse=False)]}
    assert apply_layer_settings(recognise(network.state_dict()).module, layer_names, settings).settled == settled


def test_a_few_layers_settle_nothing():
    network = torchvision.models.resnet18(num_classes=5)
    recognised = recognise(network.state_dict())
    assert apply_layer_settings(recognised.module, recognised.layer_names, {}).settled == set()
