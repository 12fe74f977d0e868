from types import SimpleNamespace
from typing import Any

import pytest

from fuseline.deploy.ray.load_report import LoadReport
from fuseline.serve.metrics.inference_statistics import DurationSum, InferenceStatistics
from tests.fakes.clock import Clock


class Subject:
    """A report of a batcher with two lanes, of which every number can be set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.statistics = InferenceStatistics()
        self.batcher: Any = SimpleNamespace(
            queued_rows=0, predicted_wait_s=0.0, bucket_seconds={}, policy=SimpleNamespace(lanes=2)
        )
        self.report = LoadReport(self.batcher, lambda: self.statistics, self.clock)

    def compute(self, seconds: float) -> None:
        self.statistics.compute_by_batch_rows.setdefault(4, DurationSum()).add_ms(1000 * seconds)


@pytest.fixture
def subject() -> Subject:
    return Subject()


def test_busy_is_the_share_of_all_lanes_time_since_the_report_before(subject: Subject) -> None:
    subject.compute(1.0)
    subject.clock.now += 2.0
    assert subject.report.take()["busy"] == pytest.approx(0.25)
    subject.clock.now += 2.0
    assert subject.report.take()["busy"] == 0.0


def test_a_long_batch_that_ends_counts_as_busy_and_no_more(subject: Subject) -> None:
    subject.compute(30.0)
    subject.clock.now += 1.0
    assert subject.report.take()["busy"] == 1.0


def test_two_reports_at_once_divide_by_nothing(subject: Subject) -> None:
    assert subject.report.take()["busy"] == 0.0


def test_the_queue_the_wait_and_the_rate_of_full_batches_are_told(subject: Subject) -> None:
    subject.batcher.queued_rows, subject.batcher.predicted_wait_s = 7, 0.125
    assert subject.report.take()["rows_per_s"] == 0.0
    subject.batcher.bucket_seconds = {1: 0.01, 8: 0.04}
    told = subject.report.take()
    assert (told["queued_rows"], told["wait_s"], told["rows_per_s"]) == (7.0, 0.125, 400.0)
    assert all(isinstance(value, float) for value in told.values())
