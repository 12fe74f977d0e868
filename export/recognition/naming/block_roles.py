"""The roles of the layers in a residual block: its convolutions in their order, their BatchNorms, and the shortcut.

Names tell the order; the layers that only some blocks have tell the shortcut; shapes must confirm both. Where two
answers remain, there is none.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from fuseline.export.recognition.naming.block_lists import NORM_LEAVES, BlockList, Layer
from fuseline.export.recognition.naming.name_order import Ordered, belong_together, in_order, index_of, leaves_room

_SHORTCUT_WORDS = re.compile(
    r"short|skip|down|proj|ident|resid|res_?conv|conv_?res|match|adjust|right|bypass|side", re.IGNORECASE
)
_BASIC, _BOTTLENECK = (3, 3), (1, 3, 1)

Block = Mapping[str, Layer]
BlockFamily = Literal["residual", "pre-activation"]


@dataclass(frozen=True)
class BlockRoles:
    """The names of a block's layers by role, without the block's own name."""

    family: BlockFamily
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    """The BatchNorm of each convolution; () where blocks have none."""
    shortcut: tuple[str, ...]
    """A projection's convolution and, where it has one, its BatchNorm; () where no block projects."""


def roles_in(blocks: BlockList) -> BlockRoles | str:
    """Return the roles of the layers of `blocks`, or a sentence on what can't be told."""
    everywhere, somewhere = _presence(blocks)
    convs = _of_kind(blocks, everywhere, "convolution")
    some_convs = _of_kind(blocks, somewhere, "convolution")
    norms = _of_kind(blocks, everywhere, "batchnorm")
    some_norms = _of_kind(blocks, somewhere, "batchnorm")
    mixed = [layer for block in blocks.blocks.values() for layer in block.values() if layer.kind == "other"]
    where = f"the blocks `{blocks.pattern}`"
    if mixed:
        return f"{where} hold {described(mixed[0])}"
    if len(some_convs) > 1 or len(some_norms) > 1:
        odd = some_convs if len(some_convs) > 1 else some_norms
        return f"some of {where} have layers whose part no name tells: {', '.join(odd[:4])}"
    chosen = _main_branch(blocks, convs, some_convs)
    if isinstance(chosen, str):
        return f"{where} {chosen}"
    main, shortcut = chosen
    if shortcut is not None and index_of(shortcut) not in (None, 0):
        return f"{where} have a layer without weights before {shortcut} in the shortcut, a pool for example"
    stages = Counter(stage for stage, _ in blocks.blocks)
    if (
        shortcut is not None
        and shortcut.startswith("../")
        and max(stages.values()) > 1
        and "down" not in shortcut.lower()
    ):
        name = shortcut.removeprefix("../")
        return f"{name}, beside {where} of a stage, may be the shortcut of the first of them or go past all of them"
    if not blocks.nested and shortcut is None:
        return (
            f"the convolutions of `{blocks.pattern}` are a list without a projection: nothing tells whether shortcuts "
            "exist, as a plain network has the same names and shapes"
        )
    if not norms and not some_norms:
        if not leaves_room(main.names, ()):
            return f"{where} have more or less than one layer without weights between {' and '.join(main.names)}"
        return BlockRoles("residual", main.names, (), (shortcut,) if shortcut else ())
    paired = _norms_of(blocks, main, shortcut, norms, some_norms)
    if isinstance(paired, str):
        return f"{where} {paired}"
    family, chosen_norms, shortcut_norm = paired
    projection = () if shortcut is None else (shortcut,) if shortcut_norm is None else (shortcut, shortcut_norm)
    return BlockRoles(family, main.names, chosen_norms, projection)


def described(layer: Layer) -> str:
    """Return a layer of no known kind, and why it is of none, for people."""
    if layer.leaves < NORM_LEAVES and layer.leaves & {"running_mean", "running_var"}:
        missing = " and ".join(sorted(NORM_LEAVES - layer.leaves))
        return f"{layer.name}, a BatchNorm without {missing} (model.state_dict(), saved whole, has them)"
    shown = ", ".join(sorted(layer.leaves)[:6])
    return f"{layer.name} ({shown}), which is no convolution, no BatchNorm with its statistics and no linear layer"


def _presence(blocks: BlockList) -> tuple[set[str], set[str]]:
    """Return the names that every block has, and those that only some have."""
    sets = [set(block) for block in blocks.blocks.values()]
    everywhere = set.intersection(*sets)
    return everywhere, set.union(*sets) - everywhere


def _of_kind(blocks: BlockList, names: set[str], kind: str) -> list[str]:
    return [
        name
        for name in sorted(names)
        if all(block[name].kind == kind for block in blocks.blocks.values() if name in block)
    ]


def _main_branch(
    blocks: BlockList, convs: Sequence[str], some_convs: Sequence[str]
) -> tuple[Ordered, str | None] | str:
    """Return the residual branch's convolutions in their order and the shortcut's, or what can't be told."""
    options: list[tuple[list[str], str | None]]
    if some_convs:
        options = [(list(convs), some_convs[0])]
    else:
        options = [(list(convs), None), *(([c for c in convs if c != out], out) for out in convs)]
    fitting: list[tuple[Ordered, str | None]] = []
    for names, shortcut in options:
        main = in_order(names) if len(names) in (2, 3) else None
        if main is not None and all(_chains(block, main.names, shortcut) for block in blocks.blocks.values()):
            fitting.append((main, shortcut))
    if len(fitting) > 1:
        called = [option for option in fitting if option[1] and _SHORTCUT_WORDS.search(option[1])]
        fitting = called if len(called) == 1 else fitting
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join([*convs, *some_convs][:6])
    if fitting:
        return f"have the convolutions {shown}: more than one of them could be the shortcut"
    return (
        f"have the convolutions {shown}, which by their order and shapes are no two of 3x3, nor 1x1, 3x3 and 1x1, "
        "beside at most one shortcut"
    )


def _chains(block: Block, main: Sequence[str], shortcut: str | None) -> bool:
    shapes = [block[name].shape for name in main]
    kernels = tuple(shape[2] for shape in shapes)
    if kernels != (_BASIC if len(main) == 2 else _BOTTLENECK) or any(shape[2] != shape[3] for shape in shapes):
        return False
    for before, after in pairwise(shapes):
        grouped = len(main) == 3 and after is shapes[1]
        # A convolution of one channel per group is depthwise: an inverted residual, whose activations differ.
        if after[1] != before[0] and not (grouped and 1 < after[1] < before[0] and before[0] % after[1] == 0):
            return False
    if len(main) == 3 and shapes[0][0] > shapes[2][0]:
        return False
    if shortcut is None or shortcut not in block:
        return True
    shape = block[shortcut].shape
    return shape[0] == shapes[-1][0] and shape[1] == shapes[0][1] and shape[2:] in ((1, 1), (3, 3))


def _norms_of(
    blocks: BlockList, main: Ordered, shortcut: str | None, norms: Sequence[str], some_norms: Sequence[str]
) -> tuple[BlockFamily, tuple[str, ...], str | None] | str:
    projecting = [place for place, block in blocks.blocks.items() if shortcut in block]
    if some_norms and [place for place, block in blocks.blocks.items() if some_norms[0] in block] != projecting:
        return f"have a BatchNorm {some_norms[0]} in other blocks than those that have a shortcut"
    count = len(main.names)
    if len(norms) == count + 1 and len(projecting) < len(blocks.blocks):
        extra = in_order(norms)
        third = extra.names[-1] if extra is not None else norms[-1]
        return (
            f"have {count} convolutions and a further BatchNorm {third} in every block, which may follow the shortcut "
            "or the sum, or come before the first convolution"
        )
    fitting = [*_pairings(blocks, main, shortcut, norms, some_norms)]
    best = [found for exact, found in fitting if exact] or [found for _, found in fitting]
    if len(best) == 1:
        return best[0]
    shown = ", ".join([*norms, *some_norms][:6])
    if len({family for family, *_ in best}) > 1:
        return f"have BatchNorms ({shown}) that may come before their convolutions or after them, as no width changes"
    if not best:
        return (
            f"have BatchNorms ({shown}) that by names and shapes don't go with {', '.join(main.names)} one by one; "
            "in a Sequential a convolution, its BatchNorm and one layer without weights were expected, over and over"
        )
    return f"have BatchNorms ({shown}) that could go with {', '.join(main.names)} in more than one way"


def _pairings(
    blocks: BlockList, main: Ordered, shortcut: str | None, norms: Sequence[str], some_norms: Sequence[str]
) -> Iterator[tuple[bool, tuple[BlockFamily, tuple[str, ...], str | None]]]:
    for chosen in combinations(norms, len(main.names)):
        rest = [*(name for name in norms if name not in chosen), *some_norms]
        ordered = in_order(chosen)
        if ordered is None or len(rest) > (shortcut is not None):
            continue
        if rest and not some_norms and not belong_together(shortcut or "", rest[0]):
            continue
        if rest and not leaves_room([shortcut or "", rest[0]], rest):
            continue
        for family in ("residual", "pre-activation"):
            pairs = [
                (conv, norm) if family == "residual" else (norm, conv)
                for conv, norm in zip(main.names, ordered.names, strict=True)
            ]
            in_place = leaves_room([name for pair in pairs for name in pair], ordered.names)
            if in_place and _has_widths(blocks, main.names, ordered.names, family):
                exact = main.ranks == ordered.ranks or main.common == ordered.common
                yield exact, (family, ordered.names, rest[0] if rest else None)


def _has_widths(blocks: BlockList, convs: Sequence[str], norms: Sequence[str], family: BlockFamily) -> bool:
    for block in blocks.blocks.values():
        inputs = [block[convs[0]].shape[1], *(block[conv].shape[0] for conv in convs)]
        expected = inputs[1:] if family == "residual" else inputs[:-1]
        if [block[norm].shape for norm in norms] != [(width,) for width in expected]:
            return False
    return True
