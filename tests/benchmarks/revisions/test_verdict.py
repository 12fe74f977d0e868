"""The decision, on noise of the shape that was recorded: speeds that drift, lognormal stretches, stretches far out."""

import numpy as np
import pytest

from fuseline.benchmarks.revisions.verdict import (
    EXACT_TOLERANCE,
    MIN_ROUNDS,
    SMALLEST_FLOOR,
    judge_counts,
    judge_times,
    noise_floor,
    round_ratio,
)

ABBAS = 40
REPEATS = 50


def ratios(generator: np.random.Generator, slowdown: float, rounds: int = MIN_ROUNDS) -> list[float]:
    """As the batcher's CPU time was seen on two busy cores.

    Stretches of 8 ms differed by 8 % (standard deviation of the logarithm), one in ten by half and more, the machine's
    speed within a round by 20 %, and processes of the same code by 1 %.
    """
    found = []
    for _ in range(rounds):
        speed = np.exp(np.cumsum(generator.normal(0, 0.05, (ABBAS, 1)), axis=0))
        costs = 1e-5 * speed * generator.lognormal(0, 0.08, (ABBAS, 4))
        costs *= np.where(generator.random((ABBAS, 4)) < 0.1, 1.5 + generator.exponential(1, (ABBAS, 4)), 1)
        costs *= np.array([1, 1, 1, 1]) + (slowdown + generator.normal(0, 0.01)) * np.array([0, 1, 1, 0])
        found.append(round_ratio(costs))
    return found


@pytest.mark.parametrize("seed", range(REPEATS))
def test_a_slowdown_of_15_percent_is_caught(seed: int) -> None:
    generator = np.random.default_rng(seed)
    verdict = judge_times(ratios(generator, 0), ratios(generator, 0.15))
    assert verdict.outcome == "regressed"
    assert verdict.difference == pytest.approx(0.15, abs=0.05)
    assert verdict.p_value is not None
    assert verdict.p_value < 0.01


@pytest.mark.parametrize("seed", range(REPEATS))
def test_unchanged_code_passes(seed: int) -> None:
    generator = np.random.default_rng(1000 + seed)
    assert judge_times(ratios(generator, 0), ratios(generator, 0)).outcome == "unchanged"


def test_what_became_faster_is_told() -> None:
    generator = np.random.default_rng(0)
    assert judge_times(ratios(generator, 0), ratios(generator, -0.15)).outcome == "improved"


def test_a_significant_difference_within_the_floor_is_no_regression() -> None:
    control = [1 + 0.0001 * number for number in range(-5, 5)]
    change = [1.015 + 0.0001 * number for number in range(-5, 5)]
    verdict = judge_times(control, change)
    assert verdict.p_value is not None
    assert verdict.p_value < 0.01
    assert (verdict.outcome, verdict.floor) == ("unchanged", SMALLEST_FLOOR)


def test_a_difference_beyond_the_floor_that_is_not_significant_is_no_regression() -> None:
    # The control is slow too: whatever it was, it was not the change.
    control = [1.05] * 4 + [1.0] * 6
    change = [1.051] * 6 + [0.999] * 4
    verdict = judge_times(control, change)
    assert verdict.p_value is not None
    assert verdict.p_value > 0.01
    assert verdict.outcome == "unchanged"


def test_noise_that_comes_only_with_the_change_raises_the_floor() -> None:
    quiet = [1 + 0.001 * number for number in range(-5, 5)]
    noisy = [1 + 0.1 * number for number in range(-5, 5)]
    assert noise_floor(quiet, quiet) == SMALLEST_FLOOR
    assert noise_floor(quiet, noisy) > 0.1
    assert noise_floor(noisy, quiet) > 0.1


def test_a_steady_drift_and_a_disturbed_stretch_change_no_ratio() -> None:
    drift = np.exp(np.arange(ABBAS * 4) * 0.001).reshape(ABBAS, 4)
    drift[3, 1] *= 20
    drift[7, 0] *= 20
    assert round_ratio(drift) == pytest.approx(1)
    assert round_ratio(drift * [1, 1.15, 1.15, 1]) == pytest.approx(1.15)


@pytest.mark.parametrize("costs", [[], [[1.0, 1.0, 1.0]], [[1.0, 0.0, 1.0, 1.0]], [[1.0, float("nan"), 1.0, 1.0]]])
def test_costs_that_are_none_are_refused(costs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        round_ratio(costs)


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        judge_times([1.0] * 9, [1.0] * 10)


@pytest.mark.parametrize(
    ("head", "outcome"),
    [(1000, "unchanged"), (1009, "unchanged"), (1011, "regressed"), (991, "unchanged"), (980, "improved")],
)
def test_counts_are_judged_by_a_tolerance_alone(head: float, outcome: str) -> None:
    verdict = judge_counts(1000, head)
    assert (verdict.outcome, verdict.floor, verdict.p_value) == (outcome, EXACT_TOLERANCE, None)


def test_slack_is_no_regression_and_more_is() -> None:
    assert judge_counts(600, 631, slack=256).outcome == "unchanged"
    assert judge_counts(600, 857, slack=256).outcome == "regressed"
    assert judge_counts(100_000, 100_900, slack=256).outcome == "unchanged"
