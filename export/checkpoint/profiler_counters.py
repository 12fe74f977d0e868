"""Removal of the counts that profilers leave among a network's tensors, such as thop's `total_ops`."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_COUNTER = re.compile(r"(.+\.)?_*(total|num|n)?_?(ops|params|parameters|flops|macs|madds)_*")


def without_profiler_counters(named: Mapping[Any, Any], notes: list[str]) -> dict[Any, Any]:
    """Return `named` without profilers' counts of operations and parameters, and note what was left out.

    A count has such a name, and is one number that is whole and not negative. The name is needed, as one number may
    well be a scale that a layer learned; no layer has a weight of such a name.
    """
    counts = [name for name, value in named.items() if isinstance(name, str) and _is_count(name, value)]
    if counts:
        more = " and so on" if len(counts) > 2 else ""
        notes.append(
            f"{len(counts)} counts of operations and parameters, which a profiler added, left aside: "
            f"{', '.join(counts[:2])}{more}"
        )
    return {name: value for name, value in named.items() if name not in set(counts)}


def _is_count(name: str, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.numel() != 1 or value.ndim > 1 or not _COUNTER.fullmatch(name):
        return False
    if value.is_complex() or value.untyped_storage().nbytes() < value.element_size():
        return False
    number = float(value)
    return number >= 0 and number.is_integer()
