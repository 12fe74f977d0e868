"""Deleting one block or layer from a trained network and putting it back (Veit et al. 2016, section 4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from models import BasicBlock, CifarResNet
from torch import nn


@dataclass(frozen=True, eq=False)
class Deletion:
    """A piece that can be taken out of a network without changing any shape."""

    name: str
    """Module name of the piece."""
    first_layer: str
    """Module name of its first convolution."""
    layers: int
    """Convolutions that go."""
    swaps: tuple[tuple[nn.Module, str, nn.Module], ...]
    """(parent, name of its child, what replaces it)."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the piece is gone; afterwards, the network is as before."""
        originals = [(parent, child, parent.get_submodule(child)) for parent, child, _ in self.swaps]
        try:
            for parent, child, replacement in self.swaps:
                setattr(parent, child, replacement)
            yield
        finally:
            for parent, child, original in originals:
                setattr(parent, child, original)


def deletions_of(model: CifarResNet) -> list[Deletion]:
    """Every single deletion, in the order of the layers: a ResNet's blocks, or a plain network's layers.

    Of a block the shortcut stays, so a block that changes the shape may go too. A layer of a plain network is a
    convolution with its BatchNorm and ReLU; one that changes the shape is left out.
    """
    deletions = []
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock):
            stage, _, position = name.rpartition(".")
            parent = model.get_submodule(stage)
            if block.shortcut is None:
                deletions += _layer_deletions(name, block)
            else:
                # The block's last ReLU may go with it: its input comes from a ReLU, and the shortcut makes nothing
                # negative.
                deletions.append(Deletion(name, f"{name}.conv1", 2, ((parent, position, block.shortcut),)))
    return deletions


def _layer_deletions(name: str, block: BasicBlock) -> list[Deletion]:
    return [
        Deletion(
            f"{name}.{conv}", f"{name}.{conv}", 1, ((block, conv, nn.Identity()), (block, batch_norm, nn.Identity()))
        )
        for conv, batch_norm in (("conv1", "bn1"), ("conv2", "bn2"))
        if _keeps_shape(block.get_submodule(conv))
    ]


def _keeps_shape(convolution: nn.Module) -> bool:
    assert isinstance(convolution, nn.Conv2d)
    return convolution.stride == (1, 1) and convolution.in_channels == convolution.out_channels
