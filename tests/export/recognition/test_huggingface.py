"""Hugging Face's ResNetForImageClassification, against transformers itself."""

import pytest
import torch
import torchvision
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from fuseline.export.recognition.architectures import recognise, tensors_in
from fuseline.export.recognition.naming.naming_schemes import scheme_named
from tests.export.recognition.equal_networks import (
    assert_equal_logits,
    assert_exports_with_a_dynamic_batch,
    assert_same_network,
    refusal,
)
from tests.export.resnets import trained_like

BASIC = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
BOTTLENECK = {
    "layer_type": "bottleneck",
    "embedding_size": 8,
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [1, 2, 1, 1],
}


def network(**options) -> torch.nn.Module:
    return trained_like(ResNetForImageClassification(ResNetConfig(num_labels=5, **options)))


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_computes_what_transformers_computes(shape):
    reference = network(**shape)
    recognised = recognise(reference.state_dict())
    assert recognised.naming == "huggingface"
    assert recognised.layer_names["fc"] == "classifier.1"
    assert {"stride", "activation"} <= {a.key for a in recognised.assumptions}
    assert_equal_logits(reference, recognised, side=70)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (BOTTLENECK, {"downsample_in_bottleneck": True}),
        (BOTTLENECK, {"downsample_in_first_stage": True}),
        (BASIC, {"downsample_in_first_stage": True}),
        (BASIC, {"hidden_act": "gelu"}),
        (BOTTLENECK, {"hidden_act": "silu"}),
        (BASIC, {"hidden_act": "swish"}),
        (BASIC, {}),
    ],
)
def test_the_config_is_honoured(shape, told):
    reference = network(**shape, **told)
    tensors = reference.state_dict()
    recognised = recognise(tensors, config=reference.config.to_dict())
    assert recognised.assumptions == ()
    assert_equal_logits(reference, recognised, side=70)
    without = recognise(tensors).spec
    assert (without == recognised.spec) == (not told)


def test_an_activation_that_is_not_known_is_refused():
    message = refusal(network(**BASIC).state_dict(), config={"hidden_act": "quick_gelu"})
    assert "hidden_act 'quick_gelu'" in message
    assert "--factory" in message


def test_a_config_of_other_weights_is_refused():
    message = refusal(network(**BASIC).state_dict(), config={"downsample_in_first_stage": True})
    assert "is it the config.json of these weights?" in message


def test_torchvisions_resnet18_is_the_same_network_under_transformers_names():
    reference = trained_like(torchvision.models.resnet18(num_classes=5))
    first = recognise(reference.state_dict())
    renamed = tensors_in(scheme_named("huggingface"), first)
    second = recognise(renamed)
    assert second.naming == "huggingface"
    assert_same_network(first, second)
    shape = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "embedding_size": 64}
    theirs = ResNetForImageClassification(ResNetConfig(num_labels=5, **shape)).eval()
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert_equal_logits(theirs, second, side=64)


def test_the_backbone_takes_a_head_from_elsewhere():
    backbone = trained_like(ResNetModel(ResNetConfig(**BASIC)))
    assert "--head-from FILE" in refusal(backbone.state_dict())
    weight, bias = torch.randn(6, 32), torch.randn(6)
    recognised = recognise(backbone.state_dict(), head=(weight, bias))
    assert (recognised.naming, recognised.classes) == ("huggingface-backbone", 6)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = backbone(images).pooler_output.flatten(1) @ weight.T + bias
        torch.testing.assert_close(recognised.module(images), expected)


def test_exports_with_a_dynamic_batch():
    assert_exports_with_a_dynamic_batch(recognise(network(**BOTTLENECK).state_dict()), side=64)
