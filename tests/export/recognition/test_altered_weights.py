"""Weights that pruning and weight normalisation keep in parts, and what quantisers leave beside them."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.resnets import tiny_network


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def changed(change: Callable[[nn.Module], object], only: type[nn.Module] = nn.Module) -> nn.Module:
    network = tiny_network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in layers_of(network):
            if isinstance(layer, only):
                change(layer)
    return network.eval()


def structured(layer: nn.Module) -> None:
    prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


def twice(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "weight", 0.3)


EXACT = {
    "pruned": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
        "21 pruned weights multiplied by their masks",
    ),
    "structured": (structured, "pruned weights"),
    "twice": (twice, "pruned weights"),
    "weight-norm": (nn.utils.weight_norm, "21 weights computed from their lengths and directions"),
    "weight-norm-of-all": (lambda layer: nn.utils.weight_norm(layer, dim=None), "weights computed from"),
    "weight-norm-of-inputs": (lambda layer: nn.utils.weight_norm(layer, dim=1), "weights computed from"),
    "parametrised": (parametrizations.weight_norm, "weights computed from"),
}


@pytest.mark.parametrize("case", EXACT)
def test_a_weight_that_its_parts_determine_is_computed_as_torch_does(case):
    change, said = EXACT[case]
    network = changed(change)
    recognised = recognise(network.state_dict())
    assert any(said in sentence for sentence in recognised.evidence)
    for name, theirs in recognised.layer_names.items():
        assert torch.equal(recognised.module.get_submodule(name).weight, network.get_submodule(theirs).weight), theirs
    assert_equal_logits(network, recognised, side=32)


def test_a_pruned_bias_is_computed_too():
    network = changed(lambda layer: prune.l1_unstructured(layer, "bias", 0.5), nn.Linear)
    recognised = recognise(network.state_dict())
    assert torch.equal(recognised.module.fc.bias, network.linear.bias)


@pytest.mark.parametrize("change", [lambda layer: prune.l1_unstructured(layer, "weight", 0.4), nn.utils.weight_norm])
def test_a_whole_module_with_the_hooks_that_compute_its_weights_is_taken(tmp_path, change):
    network = changed(change)
    torch.save(network, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    recognised = recognise(checkpoint.tensors, layer_settings=checkpoint.layer_settings)
    assert_equal_logits(network, recognised, side=32)


def halved(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", nn.Threshold(0.0, 0.0))


def normalised_and_halved(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    parametrizations.spectral_norm(layer)


ALTERED = {
    "parametrised": (halved, "parametrizations.weight.original", "remove_parametrizations(module, 'weight')"),
    "spectral-parametrised": (parametrizations.spectral_norm, "parametrizations.weight", "remove_parametrizations"),
    "two-parametrisations": (normalised_and_halved, "parametrizations.weight", "remove_parametrizations"),
    "spectral": (nn.utils.spectral_norm, "weight_u", "remove_spectral_norm(module)"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_a_weight_that_its_parts_do_not_tell_is_refused_with_the_cure(case):
    change, named, cure = ALTERED[case]
    message = refusal(changed(change).state_dict())
    assert "this network's arithmetic was altered" in message
    assert named in message
    assert cure in message
    assert "--factory package.module:function" in message


def test_half_a_pair_is_refused():
    pruned = dict(changed(lambda layer: prune.identity(layer, "weight")).state_dict())
    del pruned["conv1.weight_mask"]
    assert "conv1.weight_orig (8, 3, 3, 3) is pruning" in refusal(pruned)
    normalised = dict(changed(nn.utils.weight_norm).state_dict())
    normalised["conv1.weight_g"] = torch.ones(3)
    assert "is weight normalisation" in refusal(normalised)


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (["conv1.alpha", "layer1.0.conv1.alpha"], (1,)),
        (["layer1.0.act_alpha"], ()),
        (["relu.clip_val"], (1,)),
        (["conv1.step_size"], (1,)),
        (["conv1.s"], (8, 1, 1, 1)),
        (["conv1.quan_w_fn.s", "conv1.quan_a_fn.s"], ()),
        (["conv1.weight_quantizer._amax", "conv1.input_quantizer._amax"], (8, 1, 1, 1)),
        (["conv1.weight_quant.tensor_quant.scaling_impl.value"], ()),
        (["conv1.act_quantizer.scale"], (1,)),
        (["layer1.0.quant_relu.alpha"], (1,)),
        (["conv1.lsq_alpha"], (1,)),
    ],
)
def test_what_quantisers_learned_is_refused_with_the_cure(names, shape):
    message = refusal(tiny_network().state_dict() | {name: torch.ones(shape) for name in names})
    assert "this network's arithmetic was altered" in message
    assert f"{names[0]} {tuple(shape)}" in message
    assert "export the float model, as it was before quantisation-aware training" in message


def test_a_scale_in_another_network_is_none_of_a_resnet():
    others = {f"stage.{i}.mix.weight": torch.ones(4, 4, 1, 1) for i in range(9)} | {"stage.0.alpha": torch.ones(1)}
    assert "this is no ResNet that Fuseline knows" in refusal(others)
