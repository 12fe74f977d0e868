from types import SimpleNamespace
from typing import Any

import pytest

from fuseline.deploy.ray.autoscaling import QueuedRowsPolicy, ReplicaLoad, Target, loads_of, wanted_replicas

TARGET = Target(wait_s=0.05, busy=0.7)


def load(queued_rows: float = 0.0, wait_s: float = 0.0, busy: float = 0.0, rows_per_s: float = 1000.0) -> ReplicaLoad:
    return ReplicaLoad(queued_rows, wait_s, busy, rows_per_s)


def test_replicas_as_busy_as_they_should_be_stay() -> None:
    assert wanted_replicas(4, [load(busy=0.7)] * 4, 0, TARGET) == 4


@pytest.mark.parametrize("busy", [0.64, 0.76])
def test_a_sample_that_is_a_little_off_changes_nothing(busy: float) -> None:
    assert wanted_replicas(4, [load(busy=busy)] * 4, 0, TARGET) == 4


def test_idle_replicas_are_wanted_no_more() -> None:
    assert wanted_replicas(4, [load()] * 4, 0, TARGET) == 0


def test_the_same_work_is_shared_by_as_many_as_keep_the_target() -> None:
    assert wanted_replicas(6, [load(busy=0.35)] * 6, 0, TARGET) == pytest.approx(3)
    assert wanted_replicas(2, [load(busy=1.0)] * 2, 0, TARGET) == pytest.approx(2 / 0.7)


def test_rows_that_wait_want_replicas_that_clear_them_in_the_target_time() -> None:
    # 100 rows in 50 ms are 2,000 rows a second, beside the work that comes.
    assert wanted_replicas(2, [load(queued_rows=50, busy=0.7)] * 2, 0, TARGET) == pytest.approx(4)
    assert wanted_replicas(2, [load(busy=0.7)] * 2, 100, TARGET) == pytest.approx(4)


def test_a_predicted_wait_above_the_target_wants_more_though_nothing_else_does() -> None:
    assert wanted_replicas(4, [load(wait_s=0.06), load(), load(), load()], 0, TARGET) == pytest.approx(4.8)


def test_a_very_long_wait_doubles_the_replicas_at_most() -> None:
    assert wanted_replicas(3, [load(wait_s=9.0)] * 3, 0, TARGET) == 6


def test_a_replica_that_has_reported_nothing_yet_counts_as_the_others() -> None:
    assert wanted_replicas(4, [load(busy=0.7)] * 2, 0, TARGET) == 4


def test_without_a_report_the_replicas_stay() -> None:
    assert wanted_replicas(3, [], 50, TARGET) == 3


def test_before_batches_were_measured_waiting_rows_alone_want_nothing() -> None:
    assert wanted_replicas(1, [load(queued_rows=10, busy=0.7, rows_per_s=0.0)], 0, TARGET) == 1


def metrics(*loads: ReplicaLoad) -> dict[str, dict[str, float]]:
    return {
        field: {f"replica {index}": value[place] for index, value in enumerate(loads)}
        for place, field in enumerate(ReplicaLoad._fields)
    }


def test_loads_are_read_by_replica() -> None:
    loads = [load(1, 2, 0.3, 4), load(5, 6, 0.7, 8)]
    assert loads_of(metrics(*loads)) == loads
    partial = metrics(*loads)
    del partial["busy"]["replica 0"]
    assert loads_of(partial) == loads[1:]
    assert loads_of({}) == []
    assert loads_of({"queued_rows": {"replica 0": 1.0}}) == []


def context(**changes: Any) -> Any:
    given = {
        "aggregated_metrics": {},
        "total_queued_requests": 0.0,
        "current_num_replicas": 2,
        "target_num_replicas": 3,
    }
    return SimpleNamespace(**(given | changes))


def test_the_policy_reads_what_ray_tells() -> None:
    policy = QueuedRowsPolicy(target_wait_ms=50, target_busy=0.7)
    its = metrics(load(busy=0.7), load(busy=0.7))
    assert policy(context(aggregated_metrics=its)) == (2, {})
    wanted, _ = policy(context(aggregated_metrics=its, total_queued_requests=100.0))
    assert wanted == pytest.approx(4)


def test_the_policy_leaves_the_target_while_nothing_is_reported() -> None:
    policy = QueuedRowsPolicy(target_wait_ms=50, target_busy=0.7)
    assert policy(context()) == (3, {})
    assert policy(context(aggregated_metrics=None, total_queued_requests=None)) == (3, {})
