"""Whether a cost rose: the decision, on arrays alone.

Each round has fresh processes and gives two ratios: base against base (the control), and head against base. If nothing
changed, both are drawn from the same distribution, whatever that looks like. A ratio comes from many short stretches in
the order ABBA: a machine whose speed changes within tenths of a second changes that of all four, and a steady drift
cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

MIN_ROUNDS = 10
SIGNIFICANCE = 0.01
SMALLEST_FLOOR = 0.02
"""Timing calls nothing below it a change, however quiet the machine: layout in memory alone moves a process so far."""
EXACT_TOLERANCE = 0.01
"""What a count may rise by. Repeated counts of the same code were seen to differ by 0.2 %."""
MEMORY_SLACK = 256.0
"""Bytes of a request. An attribute more is no regression; another copy of its pixels is."""

_RESAMPLES = 4000
_QUANTILE = 0.999
_SEED = 20240229

Outcome = Literal["unchanged", "regressed", "improved"]


@dataclass(frozen=True, slots=True)
class CostVerdict:
    """What became of one cost; shares are of the base's cost, 0.15 is 15 % more."""

    outcome: Outcome
    difference: float
    floor: float
    p_value: float | None
    """None for counts, which need no statistics."""


def round_ratio(costs: ArrayLike) -> float:
    """Ratio B / A of one round: the median over its ABBAs, whose costs are (ABBAs, 4) in the order A, B, B, A.

    A stretch that a neighbour disturbed spoils its own ABBA, which the median leaves out.
    Raises `ValueError` unless all are finite and above 0.
    """
    values = np.asarray(costs, np.float64)
    if values.ndim != 2 or values.shape[1] != 4 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"costs of shape {values.shape}: expected (ABBAs, 4), all finite and above 0")
    logs = np.log(values)
    return float(np.exp(np.median((logs[:, 1] + logs[:, 2] - logs[:, 0] - logs[:, 3]) / 2)))


def judge_times(control: Sequence[float], change: Sequence[float]) -> CostVerdict:
    """Compare the rounds' ratios head / base, `change`, with base / base, `control`.

    The difference is the median of `change`. It counts if it is significant, by Mann-Whitney's two-sided test of
    `change` against `control` at 1 %, and beyond the noise floor. Raises `ValueError` for fewer than `MIN_ROUNDS`.
    """
    # Takes a second to import, which the help needn't wait for.
    from scipy.stats import mannwhitneyu

    if min(len(control), len(change)) < MIN_ROUNDS:
        raise ValueError(f"{len(control)} and {len(change)} rounds; at least {MIN_ROUNDS} are needed to judge")
    difference = float(np.median(change)) - 1
    floor = noise_floor(control, change)
    p_value = float(mannwhitneyu(change, control, alternative="two-sided").pvalue)
    return CostVerdict(_outcome(difference, floor, p_value < SIGNIFICANCE), difference, floor, p_value)


def noise_floor(control: Sequence[float], change: Sequence[float]) -> float:
    """How far the median of so many ratios strays from 1 in all but 1 of 1000 runs though nothing changed.

    One comparison of base with base is a single draw and may come out at 0 by luck. So its rounds are drawn again with
    replacement, 4000 times, and the 0.999 quantile of |median - 1| is the floor. The rounds of head against base are
    treated likewise, about their own median, and the larger counts: neighbours may have come while those ran.
    Never below `SMALLEST_FLOOR`.
    """
    spreads = (_stray(control, 1.0), _stray(change, float(np.median(change))))
    return max(SMALLEST_FLOOR, *spreads)


def judge_counts(base: float, head: float, slack: float = 0.0) -> CostVerdict:
    """Compare two counts that hardly vary, as instructions; up to `slack` more or fewer is no change either."""
    difference, floor = head / base - 1, max(EXACT_TOLERANCE, slack / base)
    return CostVerdict(_outcome(difference, floor, significant=True), difference, floor, None)


def _stray(ratios: Sequence[float], centre: float) -> float:
    values = np.asarray(ratios, np.float64) / centre
    drawn = np.random.default_rng(_SEED).choice(values, (_RESAMPLES, len(values)))
    return float(np.quantile(np.abs(np.median(drawn, axis=1) - 1), _QUANTILE))


def _outcome(difference: float, floor: float, significant: bool) -> Outcome:
    if not significant or abs(difference) <= floor:
        return "unchanged"
    return "regressed" if difference > 0 else "improved"
