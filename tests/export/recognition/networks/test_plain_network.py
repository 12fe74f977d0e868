"""The plain network without shortcuts, against one nn.Sequential as people write it."""

import pytest
import torch
from torch import nn

from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import assert_equal_logits, assert_exports_with_a_dynamic_batch, refusal
from tests.export.recognition.preact_resnets import PlainReference
from tests.export.resnets import on_meta, trained_like

PLAIN18 = (8, *(8,) * 4, *(16,) * 4, *(32,) * 4, *(64,) * 4)


@pytest.mark.parametrize("bias", [False, True])
def test_computes_what_the_plain_network_computes(bias):
    reference = trained_like(PlainReference(PLAIN18, bias=bias))
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "plain"
    assert recognised.architecture == f"plain-18 (widths 8 to 64{', convolution biases' if bias else ''})"
    assert recognised.default_input_size == 32
    assert any("strides by 2 where its width doubles" in a.meaning for a in recognised.assumptions)
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("pool", [False, True])
def test_a_max_pool_behind_a_7x7_stem_is_told_from_the_indices(pool):
    reference = trained_like(PlainReference(PLAIN18[:10], stem=7, pool=pool))
    recognised = recognise(reference.state_dict())
    assert recognised.spec.maxpool == pool
    assert any("max-pool of stride 2" in a.meaning for a in recognised.assumptions) == pool
    assert recognised.default_input_size == 224
    assert_equal_logits(reference, recognised, side=70)


def test_one_input_channel_works():
    reference = trained_like(PlainReference(PLAIN18[:6], in_channels=1))
    recognised = recognise(reference.state_dict())
    assert recognised.in_channels == 1
    assert_equal_logits(reference, recognised, side=28, channels=1)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": True},
        {"gaps": {6: nn.Dropout2d()}},
        {"stem": 7, "pool": True, "gaps": {7: nn.MaxPool2d(2)}},
        {"stem": 7, "gaps": {5: nn.Identity()}},
    ],
)
def test_any_other_gap_is_refused(options):
    message = refusal(on_meta(PlainReference, PLAIN18[:6], **options))
    assert "What fills the gaps no tensor tells" in message
    assert "--factory package.module:function" in message


def test_a_width_that_changes_but_does_not_double_is_refused():
    message = refusal(on_meta(PlainReference, (8, 8, 12)))
    assert "goes from 8 to 12 channels" in message
    assert "--factory" in message


def test_a_misshapen_tensor_is_named():
    tensors = on_meta(PlainReference, (8, 8, 16))
    tensors["features.4.running_mean"] = torch.empty(9, device="meta")
    assert "features.4.running_mean is (9,), expected (8,)" in refusal(tensors)


def test_exports_with_a_dynamic_batch():
    assert_exports_with_a_dynamic_batch(recognise(PlainReference((8, 16)).state_dict()), side=16)
