"""Metrics tell the versions of a model apart, and forget those that are served no more."""

from collections.abc import Iterator

import numpy as np
import pytest

from fuseline.serve.batching.batch_stats import BatchStats, Misses
from fuseline.serve.batching.latency_control import Decision, Rung
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.metrics.expiring_registry import KEPT_S
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.routing_metrics import AliasMetrics, ShadowMetrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from tests.fakes.clock import Clock

LOGITS = np.zeros((2, 4), np.float32)
ANSWERED = BatchedRows(LOGITS, 1.0, 2.0, 2, LOGITS, 0)


class Counted:
    """Metrics of which a test says what is served and what time it is."""

    def __init__(self) -> None:
        self.served = {("m", "3"), ("m", "4")}
        self.clock = Clock()
        self.metrics = Metrics(served=lambda: self.served, clock=self.clock)
        self.metrics.registry.register(TritonMetrics(self.metrics))
        self.aliases = AliasMetrics(self.metrics.registry)
        self.shadows = ShadowMetrics(self.metrics.registry)

    def count(self, version: str, code: str = "OK", seconds: float = 0.25) -> None:
        """Count one request, and all that may come with it."""
        self.metrics.count_request("Classify", "m", code, seconds, ANSWERED if code == "OK" else None, version)
        self.metrics.count_preprocess("m", version, 0.01)
        self.metrics.count_batch("m", BatchStats(3, 4, 0.5, 2.0, failed=code != "OK"), version)
        self.metrics.count_misses("m", Misses((0.001,), 1), version)
        self.metrics.count_decision("m", Decision(Rung(4, 0.001), 0.02, "up"), version)
        self.aliases.requests("prod", "m", version).add()
        self.shadows.count_outcome(("prod", "m", version), "agrees")

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for family in self.metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.startswith("process_"):
                    yield sample.name, sample.labels, sample.value

    def of(self, version: str) -> dict[str, float]:
        """Every sample of the version, by its name and labels."""
        return {f"{name}{labels}": value for name, labels, value in self.samples() if labels.get("version") == version}

    def requests(self, version: str, code: str = "OK") -> float | None:
        labels = {"method": "Classify", "model": "m", "version": version, "code": code}
        return self.metrics.registry.get_sample_value("fuseline_requests_total", labels)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_canary_s_errors_and_latency_are_its_own(counted: Counted) -> None:
    for _ in range(9):
        counted.count("3", seconds=0.002)
    counted.count("4", "INTERNAL", seconds=2.0)
    counted.metrics.count_request("Classify", "", "NOT_FOUND", 0.0)
    assert (counted.requests("3"), counted.requests("3", "INTERNAL")) == (9, None)
    assert (counted.requests("4"), counted.requests("4", "INTERNAL")) == (None, 1)
    value = counted.metrics.registry.get_sample_value
    slow = {"method": "Classify", "model": "m", "le": "0.002"}
    assert value("fuseline_request_seconds_bucket", slow | {"version": "3"}) == 9
    assert value("fuseline_request_seconds_bucket", slow | {"version": "4"}) == 0
    for version, failed in (("3", None), ("4", 1)):
        labels = {"model": "m", "version": version}
        assert value("fuseline_failed_batches_total", labels) == failed
        assert value("nv_inference_request_success", labels) == (0 if failed else 9)
    unknown = {"method": "Classify", "model": "", "version": "", "code": "NOT_FOUND"}
    assert value("fuseline_requests_total", unknown) == 1


def test_of_what_is_counted_for_a_version_only_its_settings_and_loads_lack_it(counted: Counted) -> None:
    counted.count("3")
    by_name = {
        name
        for name, labels, _ in counted.samples()
        if "model" in labels and "version" not in labels and not name.endswith("_created")
    }
    assert by_name == set()


def test_all_series_of_a_version_that_went_are_dropped_at_once_and_no_others_change(counted: Counted) -> None:
    counted.count("3")
    counted.count("4")
    before, kept = counted.of("4"), counted.of("3")
    assert len(before) > 100
    counted.served.discard(("m", "4"))
    # The last scrapes have its last counts.
    for _ in range(3):
        assert counted.of("4") == before
        counted.clock.now += KEPT_S / 3
    assert counted.of("4") == {}
    assert counted.of("3") == kept
    assert set(counted.metrics.statistics) == {"m/3"}
    # What was answered since the start is told in a drain, by its status.
    assert counted.metrics.requests_by_code() == {"OK": 2}


def test_a_version_that_comes_back_in_time_goes_on_with_its_counts_and_later_begins_at_0(counted: Counted) -> None:
    counted.count("4")
    counted.served.discard(("m", "4"))
    assert counted.requests("4") == 1
    counted.clock.now += KEPT_S - 1
    assert counted.requests("4") == 1
    counted.served.add(("m", "4"))
    counted.clock.now += KEPT_S
    counted.count("4")
    assert counted.requests("4") == 2
    counted.served.discard(("m", "4"))
    assert counted.requests("4") == 2
    counted.clock.now += KEPT_S
    assert counted.requests("4") is None
    counted.served.add(("m", "4"))
    counted.count("4")
    assert counted.requests("4") == 1
    assert counted.metrics.requests_by_code() == {"OK": 3}


def test_what_is_still_counted_for_a_version_that_is_not_served_stays(counted: Counted) -> None:
    """As requests that a shadow was to compute which is not there."""
    value = counted.metrics.registry.get_sample_value
    labels = {"shadowed": "prod", "model": "m", "version": "9", "outcome": "dropped"}
    for count in range(1, 5):
        counted.shadows.count_outcome(("prod", "m", "9"), "dropped")
        assert value("fuseline_shadow_requests_total", labels) == count
        counted.clock.now += KEPT_S
    assert value("fuseline_shadow_requests_total", labels) is None


def test_versions_that_come_and_go_for_months_leave_nothing(counted: Counted) -> None:
    counted.count("3")
    size = len(list(counted.samples()))
    for version in range(100, 1000):
        counted.served = {("m", "3"), ("m", str(version))}
        counted.count(str(version))
        counted.clock.now += KEPT_S
        counted.metrics.registry.drop_gone()
    counted.served = {("m", "3")}
    counted.metrics.registry.drop_gone()
    counted.clock.now += KEPT_S
    assert len(list(counted.samples())) == size
    assert len(counted.metrics.statistics) == 1
