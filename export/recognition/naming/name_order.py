"""The order that names tell: `conv1` before `conv2`, `conv_a` before `conv_b`, `left.0` before `left.3`."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_ORDINALS = (("first", "one"), ("second", "two"), ("third", "three"), ("fourth", "four"), ("fifth", "five"))
_RANKS = {word: rank for rank, words in enumerate(_ORDINALS, start=1) for word in words}
_CONV_WORDS = frozenset({"conv", "convolution", "d", "layer", "weight"})
_NORM_WORDS = frozenset({"bn", "norm", "batchnorm", "batch", "normalization", "d"})
NUMBER_IN_NAME = re.compile(rf"\d+|(?<![a-zA-Z])(?:{'|'.join(_RANKS)})(?![a-zA-Z])")
"""What counts parts within a name: digits, or an ordinal that stands alone."""


@dataclass(frozen=True)
class Ordered:
    """Names in their order."""

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    """What distinguishes each; () of a single name."""
    common: tuple[str, ...]
    """What they share, with "#" where they differ."""


def tokens_of(name: str) -> tuple[str, ...]:
    """`layer1.convA` as layer, 1, conv, a."""
    return tuple(token.lower() for token in _TOKEN.findall(name))


def rank_of(text: str) -> int | None:
    """The number that digits, a single letter or an ordinal stand for; None of anything else or of absurd numbers."""
    if text.isdecimal():
        return int(text) if len(text) <= 4 else None
    if len(text) == 1 and "a" <= text <= "h":
        return ord(text) - ord("a") + 1
    return _RANKS.get(text)


def in_order(names: Collection[str]) -> Ordered | None:
    """`names` in the order of the one number, letter or ordinal in which they differ; None where that isn't so."""
    split = {name: tokens_of(name) for name in names}
    if not split or len({len(tokens) for tokens in split.values()}) != 1:
        return None
    columns = list(zip(*split.values(), strict=True))
    differing = [column for column, tokens in enumerate(columns) if len(set(tokens)) > 1]
    common = tuple("#" if column in differing else tokens[0] for column, tokens in enumerate(columns))
    if len(split) == 1:
        return Ordered(tuple(names), (), common)
    orders = set()
    ranked: list[tuple[int, str]] = []
    for column in differing:
        ranks = [(rank_of(tokens[column]), name) for name, tokens in split.items()]
        ranked = sorted((rank, name) for rank, name in ranks if rank is not None)
        if len({rank for rank, _ in ranked}) != len(split):
            return None
        orders.add(tuple(name for _, name in ranked))
    if len(orders) != 1:
        return None
    return Ordered(orders.pop(), tuple(rank for rank, _ in ranked), common)


def index_of(name: str) -> int | None:
    """The index of a layer in its Sequential or list; None where its last part is no number."""
    last = name.rpartition(".")[2]
    return int(last) if last.isdecimal() and last.isascii() and len(last) <= 4 else None


def leaves_room(names: Sequence[str], norms: Collection[str]) -> bool:
    """Whether layers that compute in the order of `names` lie in their Sequentials as though only activations did too.

    In one Sequential a BatchNorm comes right behind its convolution, one layer without weights before the next
    convolution, and nothing before the first. Elsewhere nothing tells, so it may be so.
    """
    runs = [(container, list(run)) for container, run in groupby(names, lambda name: name.rpartition(".")[0])]
    lists = {container for container, count in Counter(container for container, _ in runs).items() if count > 1}
    for container, run in runs:
        indices = [index_of(name) for name in run]
        if container in lists or None in indices:
            continue
        if indices[0] != 0:
            return False
        for (one, before), (other, after) in pairwise(zip(run, indices, strict=True)):
            # Fused before, a BatchNorm leaves its place empty.
            steps = (1,) if other in norms else (2,) if one in norms else (2, 3)
            if (after or 0) - (before or 0) not in steps:
                return False
    return True


def belong_together(conv: str, norm: str) -> bool:
    """Whether a convolution and a BatchNorm have the same names but for those words, or lie in one container."""
    container = conv.rpartition(".")[0]
    index = index_of(conv)
    if container == norm.rpartition(".")[0] and (container or index is not None):
        return index is None or index_of(norm) == index + 1
    ours = [token for token in tokens_of(conv) if token not in _CONV_WORDS]
    theirs = [token for token in tokens_of(norm) if token not in _NORM_WORDS]
    return ours == theirs or (bool(container) and theirs == list(tokens_of(container)))
