import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fuseline.serve.batching.batcher import BatchedRows, BatchStats
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.workers.reports import Report, ReportCollector, report_of, statistics_from, summed

LOGITS = np.zeros((2, 4), np.float32)
ANSWERED = BatchedRows(LOGITS, 1.0, 2.0, 2, LOGITS, 0)


def counted(*, requests: int, batches: int) -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.count_request("Classify", "m", "OK", 0.25, ANSWERED)
    for _ in range(batches):
        metrics.count_batch("m", BatchStats(3, 4, 0.5, 2.0, failed=False))
    return metrics


def shown(report: Report) -> str:
    registry = CollectorRegistry()
    registry.register(ReportCollector(report))
    return generate_latest(registry).decode()


def only_ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if "fuseline_" in line and "_created" not in line]


def test_the_sum_of_several_processes_reads_as_one_that_had_counted_everything() -> None:
    parts = [counted(requests=2, batches=0), counted(requests=3, batches=0), counted(requests=0, batches=4)]
    total = summed(report_of(part.registry, part.statistics) for part in parts)
    # As it crosses from process to process.
    total = Report.model_validate_json(total.model_dump_json())
    whole = counted(requests=5, batches=4)
    assert sorted(only_ours(shown(total))) == sorted(only_ours(generate_latest(whole.registry).decode()))
    ours, its = statistics_from(total.models)["m"], whole.statistics["m"]
    for field in ("rows", "batches", "compute_by_batch_rows", "success", "fail", "queue", "compute"):
        assert getattr(ours, field) == getattr(its, field)


def test_a_process_that_has_ended_leaves_its_counts_but_no_memory_in_use() -> None:
    metrics = counted(requests=2, batches=1)
    left = report_of(metrics.registry, metrics.statistics).counts()
    assert left.totals("fuseline_requests_total", "code") == {"OK": 2.0}
    names = {family.name for family in left.families}
    assert "process_cpu_seconds" in names
    assert not names & {"process_resident_memory_bytes", "process_open_fds", "fuseline_queued_rows"}


def test_of_start_times_the_earliest_counts() -> None:
    metrics = Metrics()
    report = report_of(metrics.registry, metrics.statistics)
    later = report.model_copy(deep=True)
    for family in later.families:
        for sample in family.samples:
            sample.value += 100
    total = {sample.name: sample.value for family in summed((later, report)).families for sample in family.samples}
    own = {sample.name: sample.value for family in report.families for sample in family.samples}
    assert total["process_start_time_seconds"] == own["process_start_time_seconds"]
    assert total["process_cpu_seconds_total"] == pytest.approx(2 * own["process_cpu_seconds_total"] + 100)
