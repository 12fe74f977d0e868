"""The residual blocks of a checkpoint, found by what repeats in its layers' names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fuseline.export.recognition.naming.name_order import NUMBER_IN_NAME, rank_of

LayerKind = Literal["convolution", "batchnorm", "linear", "other"]
_CONV_LEAVES = {"weight", "bias"}
NORM_LEAVES = frozenset({"weight", "bias", "running_mean", "running_var"})
# ResNet-1202 has about 2500 layers; the search takes at worst the square of their number.
MOST_LAYERS = 3000
_MOST_PATTERNS = 64
_MOST_PARTS = 12
# He et al.'s own names begin at conv2_x.
_FROM_TWO = re.compile(r"(conv|res)_?$", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """A layer with weights."""

    name: str
    alias: str
    """The name without the numbers of containers that hold nothing else: `conv1` for `conv1.0`."""
    kind: LayerKind
    shape: tuple[int, ...]
    """Shape of the weight; () if there is none."""
    leaves: frozenset[str]
    """Names of the layer's tensors, without the layer's own name."""

    @property
    def biased(self) -> bool:
        """Whether the layer has a bias."""
        return "bias" in self.leaves


@dataclass(frozen=True)
class BlockList:
    """The blocks that one pattern of names finds, and the layers outside of them."""

    pattern: str
    """The pattern, for people: `layerN.M`."""
    nested: bool
    """Whether the names tell stages and blocks; else they tell blocks alone, in their order."""
    blocks: Mapping[tuple[int, int], Mapping[str, Layer]]
    """(stage, block), from 0, to the block's layers, by their alias within the block; (0, block) where not nested. A
    layer beside the blocks of a stage belongs to the first block, with `../` before its alias."""
    outside: tuple[Layer, ...]


def layers_of(weights: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    """Return the layers that `weights` belong to, in the order of the checkpoint."""
    leaves: dict[str, set[str]] = {}
    for name in weights:
        layer, _, leaf = name.rpartition(".")
        leaves.setdefault(layer, set()).add(leaf)
    # A layer may hold another, as detectron2's convolutions hold their BatchNorms; counting 2 makes it keep its name.
    beneath = dict.fromkeys(leaves, 2)
    for layer in leaves:
        parts = layer.split(".")
        for count in range(1, min(len(parts), _MOST_PARTS)):
            container = ".".join(parts[:count])
            beneath[container] = beneath.get(container, 0) + 1
    layers = []
    for layer, found in leaves.items():
        weight = weights.get(f"{layer}.weight")
        shape = () if weight is None else tuple(weight.shape)
        layers.append(Layer(layer, _alias(layer, beneath), _kind(found, shape), shape, frozenset(found)))
    return tuple(layers)


def block_lists(layers: tuple[Layer, ...]) -> Iterator[BlockList]:
    """Yield each reading in which names repeat so that there are two or more blocks of several convolutions."""
    patterns: dict[str, dict[str, tuple[int, ...]]] = {}
    if len(layers) > MOST_LAYERS:
        return
    for layer in layers:
        if layer.kind != "convolution":
            continue
        parts = layer.alias.split(".")
        for count in range(1, min(len(parts), _MOST_PARTS)):
            prefix = ".".join(parts[:count])
            ranks = [rank_of(number) for number in NUMBER_IN_NAME.findall(prefix)]
            numbers = tuple(rank for rank in ranks if rank is not None)
            if "{" not in prefix and len(numbers) == len(ranks) and len(numbers) in (1, 2):
                patterns.setdefault(NUMBER_IN_NAME.sub("{}", prefix), {})[prefix] = numbers
    # Of equal readings the first counts: stages and blocks before blocks alone, whole blocks before their parts.
    ranked = sorted(patterns.items(), key=lambda item: (-item[0].count("{}"), -len(item[1]), len(item[0])))
    commonest = ranked[:_MOST_PATTERNS]
    for pattern, prefixes in commonest:
        if len(prefixes) > 1 and (found := _block_list(pattern, prefixes, layers)) is not None:
            yield found


def _block_list(pattern: str, prefixes: Mapping[str, tuple[int, ...]], layers: tuple[Layer, ...]) -> BlockList | None:
    nested = pattern.count("{}") == 2
    within: dict[str, dict[str, Layer]] = {prefix: {} for prefix in prefixes}
    outside = []
    for layer in layers:
        parts = layer.alias.split(".")
        depths = range(1, min(len(parts), _MOST_PARTS))
        prefix = next((p for count in depths if (p := ".".join(parts[:count])) in within), None)
        if prefix is None:
            outside.append(layer)
        else:
            within[prefix][layer.alias.removeprefix(f"{prefix}.")] = layer
    convs = [sum(layer.kind == "convolution" for layer in block.values()) for block in within.values()]
    if len(within) < 2 or min(convs) < 2:
        return None
    places = _places(pattern, prefixes, outside, nested=nested)
    if places is None:
        return None
    blocks = {places[prefix]: block for prefix, block in within.items()}
    if nested:
        outside = _with_stages_own(pattern, prefixes, blocks, places, outside)
    shown = pattern.replace("{}", "N", 1).replace("{}", "M")
    return BlockList(shown, nested, dict(sorted(blocks.items())), tuple(outside))


def _places(
    pattern: str, prefixes: Mapping[str, tuple[int, ...]], outside: list[Layer], *, nested: bool
) -> dict[str, tuple[int, int]] | None:
    """Return prefix -> (stage, block), from 0; None where numbers have gaps or don't begin where they should."""
    numbers = sorted({ranks[0] for ranks in prefixes.values()})
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return None
    before, _, behind = pattern.partition("{}")
    if numbers[0] > 1 and not (numbers[0] == 2 and _FROM_TWO.search(before)):
        is_index = before[-1:] in ("", ".") and behind[:1] in ("", ".")
        if is_index and not _follow_their_stem(before, numbers[0], outside):
            return None
        if not is_index and not any(layer.name.startswith(f"{before}{numbers[0] - 1}.") for layer in outside):
            return None
    if not nested:
        return {prefix: (0, ranks[0] - numbers[0]) for prefix, ranks in prefixes.items()}
    starts = set()
    for stage in numbers:
        inner = sorted(ranks[1] for ranks in prefixes.values() if ranks[0] == stage)
        starts.add(inner[0])
        if inner != list(range(inner[0], inner[0] + len(inner))):
            return None
    if starts not in ({0}, {1}):
        return None
    return {prefix: (ranks[0] - numbers[0], ranks[1] - min(starts)) for prefix, ranks in prefixes.items()}


def _follow_their_stem(container: str, start: int, outside: list[Layer]) -> bool:
    """Return whether the stem is in the same Sequential, with a ReLU, or a ReLU and a max-pool, before the blocks."""
    stem = {layer.alias: layer for layer in outside}
    conv, norm = stem.get(f"{container}0"), stem.get(f"{container}1")
    if conv is None or norm is None or (conv.kind, norm.kind) != ("convolution", "batchnorm"):
        return False
    return (start, conv.shape[-1]) in ((3, 3), (4, 7))


def _with_stages_own(
    pattern: str,
    prefixes: Mapping[str, tuple[int, ...]],
    blocks: Mapping[tuple[int, int], dict[str, Layer]],
    places: Mapping[str, tuple[int, int]],
    outside: list[Layer],
) -> list[Layer]:
    """Move layers beside the blocks of a stage into its first block; return the rest of `outside`."""
    numbered = [depth for depth, part in enumerate(pattern.split("."), start=1) if "{}" in part]
    if len(numbered) < 2:
        return outside
    stages = {_container(prefix, numbered[0]): places[prefix][0] for prefix in prefixes}
    own = {_container(prefix, numbered[1]) for prefix in prefixes}
    rest = []
    for layer in outside:
        container = _container(layer.alias, numbered[0])
        if container in stages and layer.alias != container and _container(layer.alias, numbered[1]) not in own:
            blocks[stages[container], 0][f"../{layer.alias.removeprefix(f'{container}.')}"] = layer
        else:
            rest.append(layer)
    return rest


def _container(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _alias(layer: str, beneath: Mapping[str, int]) -> str:
    while True:
        container, _, last = layer.rpartition(".")
        # An index above 0 means that a layer without weights comes before.
        if not container or beneath.get(container, 2) > 1 or (last.isdecimal() and last != "0"):
            return layer
        layer = container


def _kind(leaves: set[str], shape: tuple[int, ...]) -> LayerKind:
    if leaves == NORM_LEAVES and len(shape) == 1:
        return "batchnorm"
    if leaves <= _CONV_LEAVES and len(shape) in (2, 4) and all(shape):
        return "linear" if len(shape) == 2 else "convolution"
    return "other"
