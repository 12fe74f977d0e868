"""The few statistics that every figure here is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeats, in the unit of the values."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int

    def __format__(self, spec: str) -> str:
        """`median (lower to upper)`, each formatted by `spec`; without one, to three digits."""
        median, lower, upper = (
            format(value, spec) if spec else _three_digits(value)
            for value in (self.median, self.lower_quartile, self.upper_quartile)
        )
        return f"{median} ({lower} to {upper})"


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles of `values`, interpolated linearly. Raises `ValueError` if there are none."""
    if not values:
        raise ValueError("no repeat was measured, so there is no median")
    lower, median, upper = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Spread(median, lower, upper, len(values))


def pair_ratios(values: Sequence[float], baselines: Sequence[float]) -> tuple[float, ...]:
    """values[i] / baselines[i]: each repeat against the baseline of its own round.

    What slows the machine for a while slows both of a pair, so the median of these moves less than the ratio of two
    medians. Raises `ValueError` if the lengths differ or a baseline is not above 0.
    """
    if len(values) != len(baselines):
        raise ValueError(f"{len(values)} repeats can't be paired with {len(baselines)} of the baseline")
    if any(baseline <= 0 for baseline in baselines):
        raise ValueError(f"a baseline must be above 0, got {min(baselines)}")
    return tuple(value / baseline for value, baseline in zip(values, baselines, strict=True))


def best_of(*repeats: list[float]) -> list[float]:
    """Return the list with the largest median. Raises `ValueError` if all are empty."""
    return max(filter(None, repeats), key=lambda values: spread_of(values).median)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
