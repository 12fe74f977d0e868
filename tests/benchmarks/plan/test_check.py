import json

import pytest

from fuseline.benchmarks.plan.check import LOADS, Comparison, PlanCheck, simulating_seconds
from fuseline.benchmarks.plan.check_report import as_json, as_table
from tests.benchmarks.plan.profiles import LANES


def comparison(load: float = 0.5, replicas: int = 1, p50: float = 1.0, p99: float = 1.0, others: float = 0.0):
    """A load that took 20 and 100 ms; `p50` and `p99` are predicted to measured."""
    return Comparison(replicas, load, 60.0, 1000, (20.0, 100.0), (20 * p50, 100 * p99), 0, 0.0, 1.5, 1.5, others, 0.03)


def check(*rounds: list[Comparison], replicas: tuple[int, ...] = (1,)) -> PlanCheck:
    return PlanCheck("net", 2, list(rounds), dict.fromkeys(replicas, LANES))


def all_loads(**fields: float) -> list[Comparison]:
    return [comparison(load, **fields) for load in LOADS]


def test_the_median_of_the_rounds_counts() -> None:
    found = check(all_loads(), all_loads(p99=1.5), all_loads(p99=0.9))
    assert found.passed
    assert [(v.percentile, v.ratio.median) for v in found.verdicts if v.load == 0.5] == [(50, 1.0), (99, 1.0)]


@pytest.mark.parametrize(("fields", "passed"), [({"p50": 1.19}, True), ({"p50": 1.21}, False), ({"p99": 0.79}, False)])
def test_a_percentile_that_misses_by_more_than_a_fifth_fails(fields: dict[str, float], passed: bool) -> None:
    assert check(all_loads(**fields)).passed is passed


def test_simulating_too_slowly_fails() -> None:
    slow = check(all_loads())
    slow.simulating_s = 20.1
    assert not slow.passed


def test_what_simulating_takes_is_measured() -> None:
    assert 0 < simulating_seconds(LANES, 500) < 5


def test_what_other_programs_disturbed_does_not_count() -> None:
    assert check(all_loads(), all_loads(p99=9.0, others=0.2), all_loads(p99=9.0, others=0.2)).passed


def test_what_they_disturbed_each_time_fails_unjudged() -> None:
    found = check([comparison(load, others=0.2 if load == 0.8 else 0.0) for load in LOADS])
    assert (found.passed, found.unjudged) == (False, [(1, 0.8)])
    assert as_json(found)["unjudged"] == [{"replicas": 1, "load": 0.8}]


def test_each_number_of_replicas_must_pass() -> None:
    found = check([*all_loads(), *all_loads(replicas=2, p50=2.0)], replicas=(1, 2))
    assert [(v.replicas, v.percentile) for v in found.verdicts if not v.passed] == [(2, 50)] * len(LOADS)
    assert not found.passed


def test_a_result_has_every_round_and_what_was_predicted_from() -> None:
    written = json.loads(json.dumps(as_json(check(all_loads(), all_loads()))))
    assert [len(found) for found in written["rounds"]] == [3, 3]
    assert written["rounds"][0][0]["ratios"] == [1.0, 1.0]
    assert written["profiles"]["1"]["buckets"][0] == {
        "rows": 1,
        "batches": 1,
        "median_seconds": 0.0165,
        "idle_ratio": 1.0,
    }
    assert as_table(check(all_loads())).row_count == 2 * len(LOADS)
