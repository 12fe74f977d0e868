"""How the minutes are shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.benchmarks.gpu.run.schedule import LEAST_S, limit_s


def test_shares_are_those_of_the_weights() -> None:
    assert limit_s([60, 90, 450], 600) == 60
    assert limit_s([90, 450], 540) == 90


def test_what_a_step_leaves_goes_to_all_that_come() -> None:
    # The first used 20 of its 60 s.
    assert limit_s([90, 450], 580) == 580 * 90 / 540


def test_a_short_run_drops_its_last_steps_instead_of_cutting_all() -> None:
    assert limit_s([60, 60, 60, 60], 40) == LEAST_S
    assert limit_s([60, 60, 60], 20) == 20
    assert limit_s([60, 60], 0) == 0
    assert limit_s([60, 60], -3) == 0


@given(st.lists(st.floats(1, 200), min_size=1, max_size=8), st.floats(0, 2000), st.floats(0, 1))
def test_all_steps_together_never_take_more_than_there_is(weights: list[float], minutes: float, used: float) -> None:
    left = minutes
    for index in range(len(weights)):
        limit = limit_s(weights[index:], left)
        assert 0 <= limit <= left
        left -= limit * used
    # The last may take all that is left.
    assert limit_s(weights[-1:], left) == pytest.approx(left)
