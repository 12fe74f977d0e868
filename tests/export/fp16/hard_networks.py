"""Networks that FP16 can't hold, most of them a good network with a scale moved from one layer into another."""

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from fuseline.export.folding.fold import fold_network
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.export.network import TrainedNetwork
from fuseline.export.recognition.architectures import recognise
from fuseline.export.sample import generated_sample
from fuseline.serve.model_package import InputSpec, Preprocessing
from tests.export.resnets import tiny_network

SPEC = InputSpec(height=32, width=32, preprocessing=Preprocessing(resize_shorter_side=32))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PIXELS = generated_sample(SPEC, 24).pixels


def graph_of(network: nn.Module) -> tuple[onnx.ModelProto, TrainedNetwork]:
    """The FP32 graph of a checkpoint of `network`, and what it was recognised as."""
    trained = recognise(network.state_dict())
    folded = fold_network(trained.module, mean=MEAN, std=STD, probe=torch.randn(1, 3, 32, 32))
    return onnx_from_network(folded, SPEC, {}), trained


def ort_logits(graph: onnx.ModelProto, pixels: np.ndarray = PIXELS) -> np.ndarray:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(["logits"], {"image": pixels})[0]


def openvino_logits(graph: onnx.ModelProto, pixels: np.ndarray = PIXELS) -> np.ndarray:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled([pixels])[0]


def louder(batchnorm: nn.BatchNorm2d, factor: float) -> None:
    """Multiply what `batchnorm` gives."""
    batchnorm.weight.mul_(factor)
    batchnorm.bias.mul_(factor)


def used_to(batchnorm: nn.BatchNorm2d, factor: float) -> None:
    """Let `batchnorm` give the same for `factor` times the input."""
    batchnorm.running_mean.mul_(factor)
    batchnorm.running_var.mul_(factor**2)


def middle() -> nn.Module:
    network = tiny_network()
    louder(network.layer2[1].bn1, 1e5)
    used_to(network.layer2[1].bn2, 1e5)
    return network


def tiny_variance() -> nn.Module:
    """A BatchNorm with running_var 1e-12 and gamma 1e4: gains of three million."""
    network = tiny_network()
    block = network.layer3[1]
    block.bn1.running_var.fill_(1e-12)
    block.bn1.weight.fill_(1e4)
    block.bn1.bias.mul_(1e4)
    used_to(block.bn2, 1e4 / (1e-12 + block.bn1.eps) ** 0.5)
    return network


def weights_alone() -> nn.Module:
    """Weights beyond FP16 for a channel that is always zero: no activation ever tells."""
    network = tiny_network()
    block = network.layer1[1]
    block.bn1.weight[3] = block.bn1.bias[3] = 0
    block.conv2.weight[:, 3] = 2e5
    return network


def last_block() -> nn.Module:
    network = tiny_network()
    louder(network.layer4[1].bn2, 1e6)
    network.linear.weight.mul_(1e-6)
    return network


def shortcut() -> nn.Module:
    network = tiny_network()
    louder(network.layer3[0].shortcut[1], 1e5)
    for batchnorm in (network.layer3[1].bn1, network.layer4[0].bn1, network.layer4[0].shortcut[1]):
        used_to(batchnorm, 1e5)
    return network


def whisper() -> nn.Module:
    """Activations of 1e-6, for which FP16 has a dozen of numbers, and weights that it rounds to zero."""
    network = tiny_network()
    block = network.layer2[0]
    louder(block.bn1, 3e-6)
    block.conv2.weight.mul_(1e4)
    used_to(block.bn2, 0.03)
    return network


OFFSET = 4e3


def large_offset() -> nn.Module:
    """Activations of 4000 and a little, of which the next layer takes the 4000 off: well within FP16's range."""
    network = tiny_network()
    block = network.layer2[1]
    louder(block.bn1, 0.1)
    used_to(block.bn2, 0.1)
    louder(block.bn2, 3)
    block.bn1.bias.add_(OFFSET)
    centre = block.conv2.weight[:, :, 1, 1].clone()
    block.conv2.weight.zero_()
    block.conv2.weight[:, :, 1, 1] = centre
    block.bn2.running_mean.add_(OFFSET * centre.sum(1))
    return network


def trunk_offset() -> nn.Module:
    """The same on the way past the blocks: it is the sum that FP16 can't hold."""
    network = tiny_network()
    block = network.layer2[0]
    louder(network.layer1[1].bn2, 0.1)
    network.layer1[1].bn2.bias.add_(OFFSET)
    centre = block.conv1.weight[:, :, 1, 1].clone()
    block.conv1.weight.zero_()
    block.conv1.weight[:, :, 1, 1] = centre
    block.bn1.running_mean.add_(OFFSET * centre.sum(1))
    block.shortcut[1].running_mean.add_(OFFSET * block.shortcut[0].weight.sum((1, 2, 3)))
    return network


HARD: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "middle": (middle, {"layer2.1.conv1", "layer2.1/Relu", "layer2.1.conv2"}),
    "tiny variance": (tiny_variance, {"layer3.1.conv1", "layer3.1/Relu", "layer3.1.conv2"}),
    "weights alone": (weights_alone, {"layer1.1.conv2"}),
    "last block": (last_block, {"layer4.1.conv2", "layer4.1/Add", "layer4.1/Relu_2", "ReduceMean", "linear"}),
    "shortcut": (
        shortcut,
        {
            *("layer3.0.shortcut.0", "layer3.0/Add", "layer3.0/Relu_2", "layer3.1.conv1", "layer3.1/Add"),
            *("layer3.1/Relu_2", "layer4.0.conv1", "layer4.0.shortcut.0"),
        },
    ),
    "whisper": (whisper, {"layer2.0.conv1", "layer2.0.conv2"}),
    "large offset": (large_offset, {"layer2.1.conv1", "layer2.1.conv2"}),
    "trunk offset": (trunk_offset, {"layer1.1/Add", "layer2.0.conv1", "layer2.0.shortcut.0"}),
}
"""A network, and the layers that must stay in FP32, those and no others."""


@functools.cache
def hard_graph(name: str) -> tuple[onnx.ModelProto, TrainedNetwork]:
    with torch.no_grad():
        network = HARD[name][0]()
    return graph_of(network)


def eager(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    def image(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).reshape(1, 3, 1, 1)

    with torch.inference_mode():
        return network((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - image(MEAN)) / image(STD)).numpy()
