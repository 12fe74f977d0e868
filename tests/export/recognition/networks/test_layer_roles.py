"""Layers without weights in a module that was pickled whole: each is in its place, or the file is refused."""

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import Recognised, recognise
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import assert_equal_logits
from tests.export.resnets import trained_like
from tests.refusals import refusal_of


def resnet(**options) -> ResNet:
    return trained_like(ResNet(BasicBlock, [1, 1, 1, 1], 5, **options))


def pickled(network: nn.Module, path: Path, **options) -> Recognised:
    torch.save(network.eval(), path)
    checkpoint = read_checkpoint(path)
    return recognise(checkpoint.tensors, layer_settings=checkpoint.layer_settings, **options)


def doubled(network: ResNet, x: torch.Tensor) -> torch.Tensor:
    return 2 * ResNet.forward(network, x)


def with_layer(name: str, layer: nn.Module) -> Callable[[ResNet], None]:
    return lambda network: network.set_submodule(name, layer)


def with_own_forward(network: nn.Module) -> None:
    network.forward = types.MethodType(doubled, network)


CONTRADICTING = {
    "stem's activation": (with_layer("relu", nn.Identity()), "relu is a Identity where that network has an activation"),
    "block's activation": (with_layer("layer2.0.relu", nn.Dropout()), "layer2.0.relu is a Dropout"),
    "shortcut": (
        lambda network: network.layer2[0].downsample.append(nn.ReLU()),
        "layer2.0.downsample.2 is a ReLU in a shortcut",
    ),
    "main path": (
        lambda network: setattr(network.layer1[0], "bn2", nn.Sequential(network.layer1[0].bn2, nn.ReLU())),
        "layer1.0.bn2.1 is a ReLU before the shortcut is added",
    ),
    "second pool": (lambda network: network.layer2.append(nn.MaxPool2d(3, 2, 1)), "layer2.1 is one MaxPool2d more"),
    "slope": (with_layer("relu", nn.LeakyReLU(0.3)), "relu is a LeakyReLU"),
    "own forward": (with_own_forward, "at the top has its own forward"),
    "block's own forward": (lambda network: with_own_forward(network.layer2[0]), "layer2.0 has its own forward"),
}


@pytest.mark.parametrize("case", CONTRADICTING)
def test_what_cannot_be_part_of_the_network_is_refused(tmp_path, case):
    change, said = CONTRADICTING[case]
    network = resnet()
    change(network)
    assert said in refusal_of(ArchitectureError, pickled, network, tmp_path / "model.pt")


AGREEING = {
    "compiled": torch.compile,
    "post-activation twice": lambda network: with_last(network, "layer1", nn.ReLU()),
    "softmax": lambda network: with_last(network, "fc", nn.LogSoftmax(dim=1)),
    "padding by name": lambda network: replaced(
        network, "layer1.0.conv1", nn.Conv2d(64, 64, 3, padding="same", bias=False)
    ),
    "frozen": lambda _: ResNet(BasicBlock, [1] * 4, 5, norm_layer=torchvision.ops.FrozenBatchNorm2d).eval(),
}


def replaced(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    network.set_submodule(name, layer)
    return network


def with_last(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    return replaced(network, name, nn.Sequential(*_parts(network.get_submodule(name)), layer))


def _parts(layer: nn.Module) -> list[nn.Module]:
    return [*layer] if isinstance(layer, nn.Sequential) else [layer]


@pytest.mark.parametrize("case", AGREEING)
def test_what_computes_the_same_is_taken(tmp_path, case):
    network = resnet()
    recognised = pickled(AGREEING[case](network), tmp_path / "model.pt")
    reference = AGREEING[case](resnet()) if case == "frozen" else network
    if case == "frozen":
        reference.load_state_dict(recognised.module.state_dict(), strict=False)
    if case == "softmax":
        network.fc = network.fc[0]
    assert_equal_logits(reference, recognised, side=64)


def test_another_activation_names_the_flag_that_takes_it_and_it_does(tmp_path):
    network = resnet()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.ReLU):
            network.set_submodule(name, nn.GELU())
    with pytest.raises(ArchitectureError, match="relu is a GELU.*add --assume activation=gelu"):
        pickled(network, tmp_path / "model.pt")
    assert_equal_logits(network, pickled(network, tmp_path / "model.pt", assumed={"activation": "gelu"}), side=64)


def test_the_layers_of_a_rewritten_module_settle_no_activations(tmp_path):
    """Its forward may pass by any of them."""
    graph = torch.fx.symbolic_trace(resnet())
    settled = {assumption.key for assumption in pickled(graph, tmp_path / "model.pt").assumptions}
    assert {"pool", "activation"} <= settled
