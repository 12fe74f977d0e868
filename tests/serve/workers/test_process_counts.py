"""Processes drop what they counted for versions that went, each at its own time; their sum never falls."""

import numpy as np
import pytest

from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.metrics.expiring_registry import KEPT_S
from fuseline.serve.metrics.fast_metrics import VersionKey
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from fuseline.serve.workers.process_counts import ProcessCounts, forget_gone
from fuseline.serve.workers.reports import Report, report_of, summed
from tests.fakes.clock import Clock

LOGITS = np.zeros((2, 4), np.float32)
ANSWERED = BatchedRows(LOGITS, 1.0, 2.0, 2, LOGITS, 0)


class Process:
    """A process's metrics, and what the supervisor keeps of its reports."""

    def __init__(self, served: set[VersionKey]) -> None:
        self.clock = Clock()
        self.metrics = Metrics(served=lambda: served, clock=self.clock)
        self.metrics.registry.register(TritonMetrics(self.metrics))
        self.counted = ProcessCounts()

    def answer(self, version: str) -> None:
        self.metrics.count_request("Classify", "m", "OK", 0.25, ANSWERED, version)
        self.metrics.count_batch("m", BatchStats(3, 4, 0.5, 2.0, failed=False), version)

    def report(self) -> None:
        report = report_of(self.metrics.registry, self.metrics.statistics)
        report.dropped = self.metrics.registry.take_dropped()
        # As it crosses from process to process.
        self.counted.take(Report.model_validate_json(report.model_dump_json()))


class Server:
    """Two workers, a backend, and the sum of all."""

    def __init__(self) -> None:
        self.served = {("m", "3"), ("m", "4")}
        self.backend, *self.workers = (Process(self.served) for _ in range(3))
        self.ended = ProcessCounts()

    def of(self, version: str) -> dict[tuple[str, ...], float]:
        """Every sample of the version in the sum, once every process has reported."""
        running = (self.backend, *self.workers)
        for process in running:
            process.report()
        counted = (self.ended, *(process.counted for process in running))
        forget_gone(counted)
        total = summed(part for its in counted for part in its.parts())
        assert (f"m/{version}" in total.models) == (("m", version) in total.versions())
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in total.families
            for sample in family.samples
            if sample.labels.get("version") == version and not sample.name.endswith("_created")
        }


@pytest.fixture
def server() -> Server:
    its = Server()
    for process in (its.backend, *its.workers):
        for version in ("3", "4"):
            process.answer(version)
    return its


def test_the_sum_loses_a_version_at_once_when_the_last_process_has_dropped_it(server: Server) -> None:
    before, kept = server.of("4"), server.of("3")
    assert before["fuseline_requests_total", "Classify", "m", "4", "OK"] == 3
    assert before["nv_inference_count", "m", "4"] == 9
    server.served.discard(("m", "4"))
    server.of("4")
    for process in (server.backend, *server.workers):
        assert server.of("4") == before
        process.clock.now += KEPT_S
    assert server.of("4") == {}
    assert server.of("3") == kept


def test_a_version_that_comes_back_while_some_have_dropped_it_goes_on_with_its_counts(server: Server) -> None:
    before = server.of("4")
    server.served.discard(("m", "4"))
    server.of("4")
    server.workers[0].clock.now += KEPT_S
    assert server.of("4") == before
    server.served.add(("m", "4"))
    server.workers[0].answer("4")
    after = server.of("4")
    assert after["fuseline_requests_total", "Classify", "m", "4", "OK"] == 4
    assert all(after[key] >= value for key, value in before.items() if "prediction_miss" not in key[0])


def test_what_a_process_that_ended_had_counted_stays_while_another_tells_of_the_version(server: Server) -> None:
    before = server.of("4")
    server.ended.add(server.workers.pop().counted)
    assert server.of("4") == before
    server.served.discard(("m", "4"))
    server.of("4")
    server.workers[0].clock.now += KEPT_S
    assert server.of("4") == before
    server.backend.clock.now += KEPT_S
    assert server.of("4") == {}


def test_what_was_dropped_before_a_process_ended_is_kept_too(server: Server) -> None:
    before = server.of("4")
    server.served.discard(("m", "4"))
    server.of("4")
    server.workers[0].clock.now += KEPT_S
    assert server.of("4") == before
    server.ended.add(server.workers.pop(0).counted)
    assert server.of("4") == before


def test_what_is_forgotten_is_told_so_that_answers_since_the_start_are_right(server: Server) -> None:
    server.of("4")
    server.ended.add(server.workers.pop().counted)
    server.served.discard(("m", "4"))
    for process in (server.backend, *server.workers):
        process.report()
        process.clock.now += KEPT_S
        process.report()
    forgotten = forget_gone((server.ended, server.backend.counted, server.workers[0].counted))
    assert forgotten.totals("fuseline_requests_total", "code") == {"OK": 3}
