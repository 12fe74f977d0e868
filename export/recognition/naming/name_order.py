"""The order of layers by their names: `conv1` before `conv2`, `conv_a` before `conv_b`, `left.0` before `left.3`."""

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
"""A number within a name: digits, or an ordinal that stands alone."""


@dataclass(frozen=True)
class Ordered:
    """Names in their order."""

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    """The number, letter or ordinal that distinguishes each name; () for a single name."""
    common: tuple[str, ...]
    """The tokens that the names share, with "#" where they differ."""


def tokens_of(name: str) -> tuple[str, ...]:
    """Return the tokens of a name: layer, 1, conv, a of `layer1.convA`."""
    return tuple(token.lower() for token in _TOKEN.findall(name))


def rank_of(text: str) -> int | None:
    """Return the number that digits, a single letter or an ordinal stand for; None for anything else or above 9999."""
    if text.isdecimal():
        return int(text) if len(text) <= 4 else None
    if len(text) == 1 and "a" <= text <= "h":
        return ord(text) - ord("a") + 1
    return _RANKS.get(text)


def in_order(names: Collection[str]) -> Ordered | None:
    """Return `names` in the order of the one number, letter or ordinal in which they differ; None without one."""
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
    """Return the index of a layer in its Sequential or list; None where its name's last part is no number."""
    last = name.rpartition(".")[2]
    return int(last) if last.isdecimal() and last.isascii() and len(last) <= 4 else None


def leaves_room(names: Sequence[str], norms: Collection[str]) -> bool:
    """Return whether the Sequentials of layers that run in the order of `names` may hold just activations besides.

    In one Sequential a BatchNorm must come right behind its convolution, one layer without weights before the next
    convolution, and nothing before the first. For layers elsewhere nothing tells, so it may be so.
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
            # A BatchNorm that was fused before leaves its index unused.
            steps = (1,) if other in norms else (2,) if one in norms else (2, 3)
            if (after or 0) - (before or 0) not in steps:
                return False
    return True


def belong_together(conv: str, norm: str) -> bool:
    """Return whether a convolution and a BatchNorm have the same names but for those words, or one container."""
    container = conv.rpartition(".")[0]
    index = index_of(conv)
    if container == norm.rpartition(".")[0] and (container or index is not None):
        return index is None or index_of(norm) == index + 1
    of_conv = [token for token in tokens_of(conv) if token not in _CONV_WORDS]
    of_norm = [token for token in tokens_of(norm) if token not in _NORM_WORDS]
    return of_conv == of_norm or (bool(container) and of_norm == list(tokens_of(container)))
