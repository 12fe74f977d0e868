"""The search on the real simulator: what takes long."""

from dataclasses import replace

import pytest

from fuseline.benchmarks.plan.arrivals import Poisson
from fuseline.benchmarks.plan.fleet import LARGEST_GROUP, Fleet
from fuseline.benchmarks.plan.planning import Asked, plan_for
from fuseline.benchmarks.plan.search import Search
from fuseline.benchmarks.plan.simulation import ServingOptions, simulate
from fuseline.benchmarks.plan.targets import Targets, quantile
from tests.benchmarks.plan.profiles import profile_of

QUICK = profile_of({1: 0.002, 2: 0.003, 4: 0.005, 8: 0.009})
"""889 pictures/s at best."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("limits", [{"p99": 20.0}, {"p50": 4.0}])
def test_the_fewest_replicas_are_those_that_trying_all_from_one_on_finds(limits: dict[str, float]) -> None:
    search = Search(Fleet(QUICK, Poisson(1500.0), Targets(limits)))
    found = search.fewest()
    options = [ServingOptions(), *(ServingOptions(max_batch=most) for most in (2, 4)), found.options]
    assert found.replicas == next(n for n in range(1, 99) if any(search.meets(n, each) for each in options))


def test_a_group_with_its_share_does_as_a_larger_fleet_does() -> None:
    load = Poisson(24 * 889 * 0.8)
    by_group = Fleet(QUICK, load, Targets({"p99": 20.0})).figures(24, ServingOptions(), seeds=(0, 1, 2)).latency_ms
    stretch = load.stretch(1.0, 1.0, 10_000, 60_000, 5)
    latency = simulate(QUICK, stretch.arrivals, replicas=24).latency_s[stretch.counted]
    assert LARGEST_GROUP < 24
    for name, percent in (("p50", 50), ("p99", 99)):
        assert by_group[name] == pytest.approx(1000 * quantile(latency, percent), rel=0.06)


def test_queues_that_fit_keep_up_goodput_beyond_capacity() -> None:
    fleet = Fleet(QUICK, Poisson(1500.0), Targets({"p99": 30.0}))
    plan = plan_for(fleet, Asked("net/", "1,500 requests/s", {"p99": 30.0}, None, 0.1, None))
    assert plan.options.max_queue_ms <= 30
    assert plan.by_load[-1].figures.goodput_per_s > 0.85 * plan.capacity_pictures_per_s
    default = replace(plan.options, max_queue_ms=2000.0)
    factor = 1.2 * plan.capacity_pictures_per_s / 1500
    assert fleet.figures(plan.replicas, default, factor=factor).goodput_per_s < 0.3 * plan.capacity_pictures_per_s
