"""The search against trying everything, on servers that are a formula."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from fuseline.benchmarks.plan.arrivals import Burst, Poisson
from fuseline.benchmarks.plan.cost import cost_of
from fuseline.benchmarks.plan.fleet import Fleet
from fuseline.benchmarks.plan.planning import Asked, plan_for
from fuseline.benchmarks.plan.profile import FrontEnd, Profile
from fuseline.benchmarks.plan.scenarios import without_one
from fuseline.benchmarks.plan.search import Search, flags_of
from fuseline.benchmarks.plan.simulation import ServingOptions
from fuseline.benchmarks.plan.targets import Targets, quantile
from fuseline.serve.errors import PlanError
from tests.benchmarks.plan.formula import simulate
from tests.benchmarks.plan.profiles import profile_of

QUICK = profile_of({1: 0.002, 2: 0.003, 4: 0.005, 8: 0.009})
"""889 pictures/s at best."""


def fleet_of(rate: float, profile: Profile = QUICK, **limits: float) -> Fleet:
    return Fleet(profile, Poisson(rate), Targets(limits), simulate=simulate)


@pytest.mark.parametrize(
    ("rate", "limits"), [(1500.0, {"p99": 100.0}), (1500.0, {"p99": 50.0}), (3000.0, {"p50": 9.0, "p999": 90.0})]
)
def test_the_fewest_replicas_are_those_that_trying_all_from_one_on_finds(rate: float, limits: dict[str, float]) -> None:
    search = Search(fleet_of(rate, **limits))
    found = search.fewest()
    options = [ServingOptions(), *(ServingOptions(max_batch=most) for most in (2, 4))]
    met = [n for n in range(1, found.replicas + 2) if any(search.meets(n, each) for each in (*options, found.options))]
    assert found.replicas == met[0]
    assert search.meets(found.replicas, found.options)
    assert found.step == 1


def test_a_replica_that_is_nearly_full_is_none_that_bears_the_load() -> None:
    search = Search(fleet_of(889 * 0.99, p99=500.0), headroom=0.0)
    assert not search.meets(1, ServingOptions())
    assert search.fewest().replicas == 2


def test_a_tighter_latency_or_more_headroom_never_needs_fewer() -> None:
    by_limit = [Search(fleet_of(3000, p99=limit)).fewest().replicas for limit in (45.0, 60.0, 200.0)]
    assert by_limit == sorted(by_limit, reverse=True)
    assert by_limit[0] > by_limit[-1]
    by_headroom = [Search(fleet_of(3000, p99=200.0), headroom=part).fewest().replicas for part in (0.0, 0.5)]
    assert by_headroom[0] < by_headroom[1]


def test_what_no_number_meets_is_told_with_what_the_best_is() -> None:
    with pytest.raises(PlanError, match=r"^no number of replicas keeps p99 1 ms; almost idle ones have p99 .* ms: "):
        Search(fleet_of(100, p99=1.0)).fewest()


def test_a_limit_of_replicas_is_told_by_its_flag() -> None:
    with pytest.raises(PlanError, match=r"^2 replicas can't take 4,400 pictures/s: .* at least 6 are needed; raise"):
        Search(fleet_of(4000, p99=20.0), most_replicas=2).fewest()
    with pytest.raises(PlanError, match=r"^6 replicas don't keep p99 20 ms; the best of them is p99 .*; raise"):
        Search(fleet_of(4000, p99=20.0), most_replicas=6).fewest()


def test_a_setting_is_taken_where_it_serves_better() -> None:
    """Batches of 64 are slower a picture here, as some kernels are."""
    profile = profile_of({1: 0.002, 8: 0.008, 16: 0.015, 64: 0.1})
    found = Search(fleet_of(1500, profile, p99=90.0)).fewest()
    assert found.options.max_batch in {8, 16}
    assert f"--max-batch {found.options.max_batch}" in flags_of(found.options)
    assert flags_of(ServingOptions()) == ""


def test_cores_that_requests_keep_busy_beside_a_gpu_bound_a_replica() -> None:
    busy = FrontEnd(loop_seconds=0, cpu_seconds=0.004, cpu_seconds_per_mb=0.02, request_mb=0.2, transport_seconds=0)
    profile = profile_of({1: 0.001, 64: 0.002}, device="GPU", cores=4, front_end=busy)
    fleet = fleet_of(2000, profile, p99=50.0)
    assert fleet.most_pictures_per_s == pytest.approx(4 / 0.008)
    assert fleet.capacity(ServingOptions()) == pytest.approx(4 / 0.008)
    assert Search(fleet).fewest().replicas >= 2000 * 1.1 / 500
    of_loop = FrontEnd(loop_seconds=0.005, cpu_seconds=0.005, request_mb=0.2, transport_seconds=0)
    assert fleet_of(2000, profile_of({64: 0.002}, front_end=of_loop), p99=50.0).most_pictures_per_s == 200


def test_a_burst_needs_more_than_its_rate_in_the_long_run() -> None:
    steady = Search(fleet_of(800, p99=80.0)).fewest().replicas
    burst = Fleet(QUICK, Burst(800.0, 1, 4.0, 1.0), Targets({"p99": 80.0}), simulate=simulate)
    assert Search(burst).fewest().replicas > 2 * steady


def test_one_lost_of_two_leaves_the_load_to_the_other_and_one_of_many_hardly_matters() -> None:
    lost = without_one(fleet_of(1400, p99=80.0), 2, ServingOptions())
    assert lost is not None
    assert not lost.is_kept
    assert without_one(fleet_of(100, p99=30.0), 1, ServingOptions()) is None
    many = without_one(fleet_of(30 * 400, p99=80.0), 30, ServingOptions())
    assert many is not None
    assert many.is_kept


@pytest.fixture(scope="module")
def plan() -> object:
    asked = Asked("net/", "1,500 requests/s", {"p99": 80.0}, None, 0.1, 2.5)
    return plan_for(fleet_of(1500, p99=80.0), asked)


def test_a_plan_tells_every_case_its_cost_and_what_leads_to_it(plan) -> None:
    assert plan.replicas == 3
    shares = [row.part_of_capacity for row in plan.by_load]
    assert (shares[0], shares[-1]) == (0.1, 1.2)
    p99 = [row.figures.latency_ms["p99"] for row in plan.by_load[:7]]
    assert p99[0] < p99[-1]
    assert plan.by_load[-1].figures.good_share < 0.9 < plan.by_load[4].figures.good_share
    assert plan.by_load[-1].figures.rate_per_s == pytest.approx(1.2 * plan.capacity_pictures_per_s)
    assert plan.capacity_pictures_per_s == pytest.approx(3 * plan.options.max_batch / 0.005, rel=0.03)
    assert plan.options.max_batch == 4
    assert plan.cost.hour == 7.5
    assert plan.lost is not None
    assert plan.lost_of_one_more.replicas == 4
    assert plan.serve_command.startswith("fuseline serve net/")
    assert plan.manifest_command == "fuseline manifest kubernetes net/ --replicas 3"
    assert plan.network_gbit_per_s == pytest.approx(1500 * 0.15 * 8 / 1000)
    text = json.dumps(plan.as_json(), allow_nan=False)
    assert json.loads(text)["figures"]["goodput_per_s"] == plan.figures.goodput_per_s
    assert "seconds" not in json.loads(text)["profile"]


def test_the_same_plan_comes_out_twice(plan) -> None:
    again = plan_for(fleet_of(1500, p99=80.0), plan.asked)
    assert asdict(again) == asdict(plan)


def test_costs_are_the_price_times_hours() -> None:
    cost = cost_of(7, 2.1, 50_000)
    assert cost.hour == pytest.approx(14.7)
    assert cost.month == pytest.approx(14.7 * 730.5)
    assert cost.million_pictures == pytest.approx(14.7 / 180)


def test_percentiles_are_of_all_requests_and_one_without_an_answer_is_slower_than_any() -> None:
    latency = np.array([*np.full(98, 0.010), 0.5, np.nan])
    targets = Targets({"p95": 10.0, "p99": 500.0})
    assert targets.late_ratio(latency) == pytest.approx(1.0)
    assert targets.tightness(latency) == pytest.approx(1.0)
    assert Targets({"p99": 499.0}).late_ratio(latency) == pytest.approx(2.0)
    assert quantile(latency, 99) == 0.5
    assert quantile(latency, 100) == np.inf
    assert targets.within_ms == 500.0
    assert str(targets) == "p95 10 ms, p99 500 ms"
