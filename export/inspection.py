"""What a checkpoint holds: its architecture, and layer by layer shapes, parameters and multiply-adds."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from export.architectures import recognise
from export.checkpoint import read_checkpoint


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution or linear layer."""

    name: str
    kind: str
    kernel: tuple[int, ...]
    stride: int
    groups: int
    output_shape: tuple[int, ...]
    """Of one image: (channels, height, width), or (features,)."""
    parameters: int
    """Of the layer and, where one follows, of its BatchNorm (gamma and beta; running statistics are no parameters)."""
    multiply_adds: int
    """For one image; biases and BatchNorm are not counted, as is customary."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A recognised checkpoint."""

    file: str
    sha256: str
    architecture: str
    notes: tuple[str, ...]
    classes: int
    input_shape: tuple[int, int, int]
    """(channels, height, width) that the shapes and multiply-adds are for."""
    layers: tuple[Layer, ...]
    """Named as in the checkpoint."""
    parameters: int

    @property
    def multiply_adds(self) -> int:
        """Of the whole network for one image."""
        return sum(layer.multiply_adds for layer in self.layers)


def inspect_checkpoint(path: Path, input_size: tuple[int, int] | None = None) -> Inspection:
    """Recognise the checkpoint at `path` and list its layers for an input of `input_size` (height, width).

    Raises:
        CheckpointError: the file is no checkpoint.
        ArchitectureError: it holds no ResNet that Fuseline knows.
    """
    checkpoint = read_checkpoint(path)
    recognised = recognise(checkpoint.tensors)
    spec = recognised.spec
    height, width = input_size or (spec.default_input_size, spec.default_input_size)
    shape = (spec.in_channels, height, width)
    return Inspection(
        file=path.name,
        sha256=checkpoint.sha256,
        architecture=spec.name,
        notes=checkpoint.notes,
        classes=spec.classes,
        input_shape=shape,
        layers=tuple(
            replace(layer, name=recognised.layer_names[layer.name]) for layer in layers_of(recognised.module, shape)
        ),
        parameters=sum(parameter.numel() for parameter in recognised.module.parameters()),
    )


def layers_of(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Every convolution and linear layer of `module`, in the order in which they run on one image of `input_shape`."""
    layers: list[Layer] = []
    names = {child: name for name, child in module.named_modules()}

    def hook(child: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        own = sum(parameter.numel() for parameter in child.parameters())
        if isinstance(child, nn.BatchNorm2d):
            # In a ResNet a BatchNorm runs right after the convolution that feeds it.
            last = layers.pop()
            layers.append(replace(last, parameters=last.parameters + own))
            return
        shape = tuple(output.shape[1:])
        assert isinstance(child, nn.Conv2d | nn.Linear)
        positions = shape[1] * shape[2] if isinstance(child, nn.Conv2d) else 1
        layers.append(
            Layer(
                name=names[child],
                kind="conv" if isinstance(child, nn.Conv2d) else "linear",
                kernel=tuple(child.kernel_size) if isinstance(child, nn.Conv2d) else (),
                stride=child.stride[0] if isinstance(child, nn.Conv2d) else 1,
                groups=child.groups if isinstance(child, nn.Conv2d) else 1,
                output_shape=shape,
                parameters=own,
                multiply_adds=child.weight.numel() * positions,
            )
        )

    watched = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    handles = [child.register_forward_hook(hook) for child in module.modules() if isinstance(child, watched)]
    try:
        with torch.inference_mode():
            module(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(layers)
