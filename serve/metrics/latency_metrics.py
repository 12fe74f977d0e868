"""What is shown of the steering toward `--latency-target`."""

from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.batching.latency_control import Decision


class LatencyMetrics(Collector):
    """The latest decision for each model, and how many there were of each direction."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latest: dict[str, Decision] = {}
        self._counts: Counts[tuple[str, str]] = Counts()
        registry.register(self)

    def count(self, model: str, decision: Decision) -> None:
        """Count one decision."""
        self._latest[model] = decision
        self._counts[model, decision.direction] += 1

    def forget(self, model: str) -> None:
        """Show the settings of `model` no more; its counts stay, as counters never fall."""
        self._latest.pop(model, None)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, none where nothing is steered."""
        if not self._counts:
            return
        measured = GaugeMetricFamily(
            "fuseline_latency_p99_seconds",
            "99th percentile of queue and compute in the last window of --latency-target.",
            labels=["model"],
        )
        rows = GaugeMetricFamily(
            "fuseline_latency_batch_rows", "Largest number of rows of a batch that it allows.", labels=["model"]
        )
        delay = GaugeMetricFamily(
            "fuseline_latency_delay_seconds",
            "How long it lets an idle backend wait for a fuller batch.",
            labels=["model"],
        )
        for model, decision in self._latest.items():
            measured.add_metric([model], decision.latency_seconds)
            rows.add_metric([model], decision.rung.most_rows)
            delay.add_metric([model], decision.rung.delay_seconds)
        decisions = CounterMetricFamily(
            "fuseline_latency_decisions",
            "Decisions, one for each window: up to more rows a second, down to quicker answers, or stay.",
            labels=["model", "direction"],
        )
        for labels, count in self._counts.items():
            decisions.add_metric(labels, count)
        yield from (measured, rows, delay, decisions)
