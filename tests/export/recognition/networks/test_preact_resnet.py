"""Pre-activation ResNets and the wide ones, against networks as people write them."""

import pytest
import torch

from fuseline.export.recognition.architectures import recognise, tensors_in
from fuseline.export.recognition.naming.naming_schemes import scheme_named
from tests.export.recognition.equal_networks import (
    assert_equal_logits,
    assert_exports_with_a_dynamic_batch,
    assert_same_network,
    refusal,
)
from tests.export.recognition.preact_resnets import BiasedWideNetwork, PreActNetwork, WideNetwork
from tests.export.resnets import on_meta, trained_like

COUNTS, WIDTHS = (2, 1, 1, 2), (8, 16, 24, 32)


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
def test_computes_what_preactresnet_computes(bottleneck):
    reference = trained_like(PreActNetwork(COUNTS, WIDTHS, bottleneck=bottleneck))
    recognised = recognise(reference.state_dict())
    assert (recognised.naming, recognised.default_input_size) == ("preact", 32)
    assert not recognised.spec.final_norm
    assert any("activated input" in a.meaning for a in recognised.assumptions)
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
def test_computes_what_preresnet_computes(bottleneck):
    reference = trained_like(
        PreActNetwork(
            (2, 2, 2),
            (16, 32, 64),
            bottleneck=bottleneck,
            raw=True,
            shortcut="downsample",
            final_norm="bn",
            classifier="fc",
        )
    )
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "preresnet"
    assert recognised.spec.projection_input == "raw"
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("raw", [False, True], ids=["activated", "raw"])
def test_what_a_projection_takes_must_be_said_where_the_same_names_mean_both(raw):
    reference = trained_like(PreActNetwork(COUNTS, WIDTHS, raw=raw, final_norm="bn"))
    message = refusal(reference.state_dict())
    assert "fit 2 namings that compute differently" in message
    assert "--naming preact-bn (" in message
    assert "--naming preact-bn-raw (" in message
    recognised = recognise(reference.state_dict(), naming="preact-bn-raw" if raw else "preact-bn")
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize(("depth", "k"), [(10, 2), (16, 1)])
def test_computes_what_wideresnet_pytorch_computes(depth, k):
    reference = trained_like(WideNetwork(depth, k))
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "wide"
    assert recognised.layer_names["bn"] == "bn1"
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize(("depth", "k"), [(10, 2), (16, 1)])
def test_computes_what_wide_resnet_pytorch_computes(depth, k):
    reference = trained_like(BiasedWideNetwork(depth, k))
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "wide-shortcut"
    assert recognised.spec.strided_conv == 2
    assert any("stride on their convolution 2" in a.meaning for a in recognised.assumptions)
    assert_equal_logits(reference, recognised, side=32)


def test_names_what_people_call_them():
    names = [
        (PreActNetwork((2, 2, 2, 2), (64, 128, 256, 512)), "PreActResNet-18"),
        (PreActNetwork((3, 4, 6, 3), (64, 128, 256, 512), bottleneck=True), "PreActResNet-50"),
        (WideNetwork(28, 4), "WRN-28-4"),
        (BiasedWideNetwork(16, 2), "WRN-16-2 (strides on convolution 2, convolution biases)"),
    ]
    for network, name in names:
        assert recognise(network.state_dict()).architecture == name


def test_the_same_network_under_two_names_has_the_same_weights():
    reference = trained_like(WideNetwork(10, 2))
    first = recognise(reference.state_dict())
    renamed = tensors_in(scheme_named("preact-bn"), first)
    assert "layer2.0.shortcut.0.weight" in renamed
    assert_same_network(first, recognise(renamed, naming="preact-bn"))


@pytest.mark.parametrize("make", [lambda: PreActNetwork(COUNTS, WIDTHS, bottleneck=True), lambda: WideNetwork(10, 1)])
def test_exports_with_a_dynamic_batch(make):
    assert_exports_with_a_dynamic_batch(recognise(trained_like(make()).state_dict()), side=32)


def test_one_input_channel_works():
    reference = trained_like(PreActNetwork(COUNTS, WIDTHS, in_channels=1))
    recognised = recognise(reference.state_dict())
    assert recognised.in_channels == 1
    assert_equal_logits(reference, recognised, side=32, channels=1)


def test_a_missing_final_batchnorm_is_not_overlooked():
    tensors = on_meta(WideNetwork, 10, 2)
    message = refusal({name: tensor for name, tensor in tensors.items() if name != "bn1.running_var"})
    assert "missing: bn1.running_var (128,)" in message
    assert "nearest: WRN-10-2" in message


def test_an_absent_projection_is_missing():
    tensors = on_meta(PreActNetwork, COUNTS, WIDTHS)
    message = refusal({name: tensor for name, tensor in tensors.items() if "layer3.0.shortcut" not in name})
    assert "missing: layer3.0.shortcut.0.weight (24, 16, 1, 1)" in message


def test_weights_are_not_copied():
    tensors = trained_like(WideNetwork(10, 1)).state_dict()
    module = recognise(tensors).module
    assert module.fc.weight.data_ptr() == tensors["fc.weight"].data_ptr()
    assert module.layer1[0].conv1.weight.data_ptr() == tensors["block1.layer.0.conv1.weight"].data_ptr()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(module.bn.running_var, tensors["bn1.running_var"])
