"""What is shown of the steering toward `--latency-target`."""

from collections import Counter as Counts
from collections.abc import Iterator, Set

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.batching.latency_control import Decision
from fuseline.serve.metrics.fast_metrics import VersionKey


class LatencyMetrics(Collector):
    """The latest decision for each version, and how many there were of each direction."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latest: dict[VersionKey, Decision] = {}
        self._counts: Counts[tuple[str, str, str]] = Counts()
        registry.register(self)

    def count(self, version: VersionKey, decision: Decision) -> None:
        """Count one decision."""
        self._latest[version] = decision
        self._counts[(*version, decision.direction)] += 1

    def hide(self, version: VersionKey) -> None:
        """Show the settings of `version` no more; its counts stay, as counters never fall."""
        self._latest.pop(version, None)

    def forget(self, versions: Set[VersionKey]) -> None:
        """Show nothing of `versions` any more."""
        for version in versions:
            self.hide(version)
        for key in self._counts.copy():
            if key[:2] in versions:
                del self._counts[key]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, none where nothing is steered."""
        if not self._counts:
            return
        measured = GaugeMetricFamily(
            "fuseline_latency_p99_seconds",
            "99th percentile of queue and compute in the last window of --latency-target.",
            labels=["model", "version"],
        )
        rows = GaugeMetricFamily(
            "fuseline_latency_batch_rows",
            "Largest number of rows of a batch that it allows.",
            labels=["model", "version"],
        )
        delay = GaugeMetricFamily(
            "fuseline_latency_delay_seconds",
            "How long it lets an idle backend wait for a fuller batch.",
            labels=["model", "version"],
        )
        for version, decision in self._latest.copy().items():
            measured.add_metric(version, decision.latency_seconds)
            rows.add_metric(version, decision.rung.most_rows)
            delay.add_metric(version, decision.rung.delay_seconds)
        decisions = CounterMetricFamily(
            "fuseline_latency_decisions",
            "Decisions, one for each window: up to more rows a second, down to quicker answers, or stay.",
            labels=["model", "version", "direction"],
        )
        for labels, count in self._counts.copy().items():
            decisions.add_metric(labels, count)
        yield from (measured, rows, delay, decisions)
