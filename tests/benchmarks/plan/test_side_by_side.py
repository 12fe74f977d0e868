"""Simulations in processes of their own are those of this one."""

from functools import partial

import numpy as np
import pytest

from fuseline.benchmarks.plan.side_by_side import one_after_another, side_by_side
from fuseline.benchmarks.plan.simulation import Arrivals, simulate
from fuseline.serve.errors import InputError
from tests.benchmarks.plan.profiles import profile_of

PROFILE = profile_of({1: 0.002, 4: 0.005})
ARRIVALS = Arrivals(np.linspace(0.0, 0.1, 100), np.ones(100, np.int32))


def test_they_tell_the_same_in_the_order_of_the_calls() -> None:
    calls = [partial(simulate, PROFILE, ARRIVALS, replicas=count) for count in (1, 2, 1)]
    here, there = one_after_another(calls), side_by_side(calls)
    assert [len(outcome.batches) for outcome in there] == [1, 2, 1]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.latency_s, other.latency_s)


def test_what_one_of_them_raises_is_raised() -> None:
    calls = [partial(simulate, PROFILE, ARRIVALS, replicas=count) for count in (1, 0)]
    with pytest.raises(InputError, match="^0 replicas"):
        side_by_side(calls)
