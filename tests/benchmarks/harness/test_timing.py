import threading

import pytest

from fuseline.benchmarks.harness.timing import timed_calls_side_by_side


def test_who_is_over_first_is_called_on_until_all_are() -> None:
    called_on = threading.Event()
    quick_calls = 0

    def quick() -> None:
        nonlocal quick_calls
        quick_calls += 1
        if quick_calls > 2:
            called_on.set()

    def slow() -> None:
        # The burn-in and the timed part of `quick` are one call each.
        assert called_on.wait(10)

    quick_s, slow_s = timed_calls_side_by_side((quick, slow), 0.0)
    assert len(quick_s) == len(slow_s) == 1
    assert quick_calls > 2


def test_a_call_that_fails_ends_all_of_them() -> None:
    def fail() -> None:
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        timed_calls_side_by_side((lambda: None, fail), 0.01)
