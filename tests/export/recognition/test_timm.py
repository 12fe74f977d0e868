"""timm's ResNets and pre-activation ResNets, against timm itself."""

import pytest
import timm
import torch

from fuseline.export.recognition.architecture_names import name_of
from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import (
    assert_equal_logits,
    assert_exports_with_a_dynamic_batch,
    assert_same_network,
    refusal,
)
from tests.export.resnets import on_meta, trained_like

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"channels": (8, 16, 24, 32), "num_classes": 7}
# 70 pixels become 35, 18, 9, 5 and 3: odd sides show how the average pools round.
SIDE = 70


def narrow(name: str, **options) -> torch.nn.Module:
    return trained_like(timm.create_model(name, **NARROW, **options))


@pytest.mark.parametrize("name", ["resnet10t", "resnet18d", "resnet26t", "resnet50c", "resnet50d", "resnet50s"])
def test_deep_stems_and_average_pools_compute_what_timm_computes(name):
    reference = narrow(name)
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "timm"
    assert recognised.spec.stem == "deep-maxpool"
    assert recognised.spec.pooled_shortcuts == name.endswith(("d", "t"))
    assert_equal_logits(reference, recognised, SIDE)
    assert any("anti-aliasing" in a.meaning for a in recognised.assumptions)


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50", "seresnet50t", "seresnet152d"])
def test_squeeze_and_excitation_computes_what_timm_computes(name):
    reference = narrow(name)
    recognised = recognise(reference.state_dict())
    assert recognised.spec.squeeze_widths
    assert any("squeeze-and-excitation" in sentence for sentence in recognised.evidence)
    assert_equal_logits(reference, recognised, SIDE)


@pytest.mark.parametrize("name", ["seresnext26d_32x4d", "resnext50d_32x4d"])
def test_grouped_networks_of_full_width_compute_what_timm_computes(name):
    reference = trained_like(timm.create_model(name, num_classes=7))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == f"timm {name}"
    assert_equal_logits(reference, recognised, SIDE)


@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_18d", "resnetv2_50", "resnetv2_50d", "resnetv2_50t"])
def test_pre_activation_computes_what_timm_computes(name):
    reference = narrow(name, stem_chs=8)
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "timm-v2"
    assert recognised.layer_names["fc"] == "head.fc"
    assert_equal_logits(reference, recognised, SIDE)


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("resnet10t", "timm resnet10t"),
        ("resnet14t", "timm resnet14t"),
        ("resnet18", "torchvision resnet18"),
        ("resnet26", "timm resnet26"),
        ("resnet34", "torchvision resnet34"),
        ("resnet34d", "timm resnet34d"),
        ("resnet50", "torchvision resnet50"),
        ("resnet50t", "timm resnet50t"),
        ("resnet101", "torchvision resnet101"),
        ("resnet101d", "timm resnet101d"),
        ("resnet152", "torchvision resnet152"),
        ("resnet200d", "timm resnet200d"),
        ("resnext101_32x4d", "timm resnext101_32x4d"),
        ("seresnet34", "timm seresnet34"),
        ("seresnet152d", "timm seresnet152d"),
        ("seresnet269d", "timm seresnet269d"),
        ("seresnext26t_32x4d", "timm seresnext26t_32x4d"),
        ("seresnext101_64x4d", "timm seresnext101_64x4d"),
        ("resnetv2_50", "timm resnetv2_50"),
        ("resnetv2_101d", "timm resnetv2_101d"),
        ("wide_resnet50_2", "torchvision wide_resnet50_2"),
    ],
)
def test_names_timms_networks(name, known_as):
    spec = recognise(on_meta(timm.create_model, name)).spec
    assert name_of(spec) == known_as
    assert (spec.classes, spec.default_input_size) == (1000, 224)


def test_plain_resnets_are_the_same_under_both_names():
    tensors = timm.create_model("resnet18", num_classes=5).state_dict()
    first, second = recognise(tensors), recognise(tensors, naming="timm")
    assert (first.naming, second.naming) == ("torchvision", "timm")
    assert_same_network(first, second)


@pytest.mark.parametrize("name", ["seresnet18", "resnet26t", "resnetv2_18d"])
def test_exports_with_a_dynamic_batch(name):
    assert_exports_with_a_dynamic_batch(recognise(narrow(name).state_dict()), side=64)


def test_one_input_channel_works():
    reference = narrow("resnet18d", in_chans=1)
    recognised = recognise(reference.state_dict())
    assert recognised.in_channels == 1
    assert_equal_logits(reference, recognised, SIDE, channels=1)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("ecaresnet50d", "efficient channel attention"),
        ("skresnet18", "selective-kernel"),
        ("resnest14d", "split-attention"),
        ("resnetrs50", "convolution instead of the max-pool"),
        ("resnet50_gn", "GroupNorm"),
        ("resnetv2_50x1_bit", "GroupNorm"),
        ("resnetv2_50d_gn", "GroupNorm"),
        ("gcresnet50t", "attention"),
        ("vit_tiny_patch16_224", "a transformer"),
        ("swin_tiny_patch4_window7_224", "a transformer"),
    ],
)
def test_what_computes_otherwise_is_refused_by_name(name, named):
    message = refusal(on_meta(timm.create_model, name))
    assert named in message
    assert "--factory package.module:function" in message


def test_the_senet_that_is_only_nearly_a_seresnext_is_refused():
    message = refusal(on_meta(timm.create_model, "senet154"))
    assert "nearest: ResNet-152 (64x2d, deep stem 64-64-128, squeeze-and-excitation, 3x3 projections)" in message
    assert "layer1.0.conv2.weight is (256, 2, 3, 3)" in message


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur18", "seresnextaa101d_32x8d"])
def test_anti_aliasing_pools_are_told_by_the_config_alone(name):
    message = refusal(on_meta(timm.create_model, "resnet18"), config={"architecture": name})
    assert f"--factory timm:create_model --factory-arg model_name={name}" in message
    assert "anti-aliasing" in message
    assert recognise(narrow("resnet18").state_dict(), config={"architecture": "resnet18"}).naming == "torchvision"


@pytest.mark.parametrize("told", [{"model_args": {"act_layer": "silu", "num_classes": 7}}, {"global_pool": "max"}])
def test_what_only_the_config_tells_is_refused(told):
    message = refusal(on_meta(timm.create_model, "resnet18"), config={"architecture": "resnet18"} | told)
    assert "silu" in message or "global_pool=max" in message
    harmless = {"architecture": "resnet18", "model_args": {"num_classes": 7}, "global_pool": "avg"}
    assert recognise(narrow("resnet18").state_dict(), config=harmless).assumptions == ()
