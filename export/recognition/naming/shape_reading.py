"""A reading by shapes and order alone, for names that say nothing: what the tensors could be, for a person to check.

No network is built from it. `fuseline inspect --rename-template` writes it to a file, which the user checks and gives
to `--rename`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fuseline.export.recognition.naming.block_lists import MOST_LAYERS, Layer, layers_of
from fuseline.export.recognition.naming.name_order import leaves_room


@dataclass(frozen=True)
class ShapeReading:
    """What each tensor could be."""

    names: Mapping[str, str]
    """The checkpoint's tensor names to torchvision's; "" where shapes and order don't tell."""
    projections: int
    """Number of blocks whose shortcut has a convolution."""
    blocks: int

    @property
    def is_whole(self) -> bool:
        """Whether every tensor has a place."""
        return bool(self.names) and all(self.names.values())


@dataclass(frozen=True)
class _Block:
    convs: tuple[Layer, ...]
    shortcut: Layer | None

    @property
    def out(self) -> int:
        return self.convs[-1].shape[0]


def read_shapes(weights: Mapping[str, Tensor]) -> ShapeReading:
    """Return the reading of `weights` as a ResNet that their shapes and order suggest; nothing proves it."""
    layers = list(layers_of(weights))
    if len(layers) > MOST_LAYERS:
        return ShapeReading(dict.fromkeys(weights, ""), 0, 0)
    if [layer.name for layer in layers] == sorted(layer.name for layer in layers):
        # safetensors sorts names as text, so that `10` comes before `2`.
        layers.sort(key=lambda layer: _natural(layer.name))
    convs = [layer for layer in layers if layer.kind == "convolution"]
    linear = [layer for layer in layers if layer.kind == "linear"]
    stem = next((conv for conv in convs if conv.shape[1] in (1, 3) and conv.shape[2] > 1), None)
    # Where there are several matrices, only `--head` tells which is the classifier.
    places: dict[str, str] = {linear[0].name: "fc"} if len(linear) == 1 else {}
    blocks: list[_Block] = []
    if stem is not None:
        blocks = _blocks([conv for conv in convs if conv is not stem], stem.shape[0])
        _place(places, _Norms(layers), stem, blocks)
    if not all(_leaves_room(block, places) for block in blocks):
        places = {}
    names = {}
    for name in weights:
        layer, _, leaf = name.rpartition(".")
        names[name] = f"{places[layer]}.{leaf}" if layer in places else ""
    return ShapeReading(names, sum(block.shortcut is not None for block in blocks), len(blocks))


def _place(places: dict[str, str], norms: "_Norms", stem: Layer, blocks: Sequence[_Block]) -> None:
    def put(conv: Layer, ours: str, norm: str) -> None:
        places[conv.name] = ours
        if (found := norms.taken_by(conv)) is not None:
            places[found.name] = norm

    put(stem, "conv1", "bn1")
    stage, number, width = 0, 0, stem.shape[0]
    for block in blocks:
        if stage == 0 or block.shortcut is not None or block.out != width:
            stage, number = stage + 1, 0
        ours = f"layer{stage}.{number}"
        for k, conv in enumerate(block.convs, start=1):
            put(conv, f"{ours}.conv{k}", f"{ours}.bn{k}")
        if block.shortcut is not None:
            put(block.shortcut, f"{ours}.downsample.0", f"{ours}.downsample.1")
        number, width = number + 1, block.out


class _Norms:
    """BatchNorms that no convolution has taken yet."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._free = [layer for layer in layers if layer.kind == "batchnorm"]

    def taken_by(self, conv: Layer) -> Layer | None:
        """Remove and return the BatchNorm nearest by name to `conv` among those that fit its output channels."""
        fitting = [norm for norm in self._free if norm.shape == conv.shape[:1]]
        if not fitting:
            return None
        best = max(fitting, key=lambda norm: _shared_parts(conv.name, norm.name))
        self._free.remove(best)
        return best


def _blocks(convs: Sequence[Layer], width: int) -> list[_Block]:
    """Return as many blocks, from the first convolution on, as the shapes allow."""
    blocks = []
    at = 0
    while (block := _block_at(convs[at : at + 4], width)) is not None:
        blocks.append(block)
        at += len(block.convs) + (block.shortcut is not None)
        width = block.out
    return blocks


def _block_at(convs: Sequence[Layer], width: int) -> _Block | None:
    for count, kernels in ((3, (1, 3, 1)), (2, (3, 3))):
        for skipped in (count, 0, *range(1, count)):
            window = convs[: count + 1]
            if skipped < len(window):
                main = (*window[:skipped], *window[skipped + 1 :])
                if _is_branch(main, kernels, width) and _is_shortcut(window[skipped], main, width):
                    return _Block(main, window[skipped])
        main = tuple(convs[:count])
        if _is_branch(main, kernels, width):
            return _Block(main, None)
    return None


def _is_branch(convs: Sequence[Layer], kernels: Sequence[int], width: int) -> bool:
    if [conv.shape[2] for conv in convs] != list(kernels):
        return False
    for conv in convs:
        if conv.shape[1] != width and not (len(kernels) == 3 and conv is convs[1] and width % conv.shape[1] == 0):
            return False
        width = conv.shape[0]
    return True


def _is_shortcut(conv: Layer, main: Sequence[Layer], width: int) -> bool:
    out = main[-1].shape[0]
    if conv.shape[:2] != (out, width) or conv.shape[2] not in (1, 3):
        return False
    # Where the width stays, shapes prove nothing: a convolution with a kernel like the branch's belongs to the next
    # block, and one in another container doesn't belong to this block.
    containers = {layer.name.partition(".")[0] for layer in main}
    is_in_block = len(containers) > 1 or conv.name.partition(".")[0] in containers
    return out != width or (is_in_block and conv.shape[2] not in [layer.shape[2] for layer in main])


def _leaves_room(block: _Block, places: Mapping[str, str]) -> bool:
    """Return whether the Sequentials of a block leave room for its activations; see `leaves_room`."""
    stored = {place: name for name, place in places.items()}
    norms = {conv.name: stored.get(places[conv.name].replace("conv", "bn")) for conv in block.convs}
    order = [name for conv in block.convs for name in (conv.name, norms[conv.name]) if name is not None]
    return leaves_room(order, {norm for norm in norms.values() if norm is not None})


def _shared_parts(one: str, other: str) -> int:
    count = 0
    for part, other_part in zip(one.split("."), other.split("."), strict=False):
        if part != other_part:
            break
        count += 1
    return count


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", name)]
