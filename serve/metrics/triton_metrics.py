"""Triton's metrics of inference, by its names, from what is counted anyway.

Names, units and meanings are those of https://github.com/triton-inference-server/server, docs/user_guide/metrics.md.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.metrics.metrics import Metrics

_REASON_OF_CODE = {
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}
"""Triton's reasons of failures by gRPC status; every other status is OTHER."""

_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

UNSUFFIXED = "unknown"
"""Type of Triton's counters for `prometheus_client`, which would add `_total` to the name of one of type `counter`."""


class TritonMetrics(Collector):
    """Shows what `metrics` has counted by Triton's names: the models that it knows, each with its version."""

    def __init__(self, metrics: Metrics) -> None:
        """Show `metrics`; its registry is to be given this collector."""
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield Triton's metrics for the registry."""
        metrics = self._metrics
        succeeded: dict[str, int] = {}
        failed: dict[tuple[str, str], int] = {}
        for (_, model, code), count in metrics.requests_by_labels().items():
            if code == "OK":
                succeeded[model] = succeeded.get(model, 0) + count
            else:
                key = model, _REASON_OF_CODE.get(code, "OTHER")
                failed[key] = failed.get(key, 0) + count
        labels = {name: {"model": name, "version": version} for name, version in metrics.versions.copy().items()}
        counted = {name: metrics.statistics[name] for name in labels}
        yield _counter(
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
            {name: succeeded.get(name, 0) for name in labels},
            labels,
        )
        failures = Metric(
            "nv_inference_request_failure", "Number of failed inference requests, all batch sizes", UNSUFFIXED
        )
        for name, its in labels.items():
            for reason in _REASONS:
                failures.add_sample(failures.name, its | {"reason": reason}, failed.get((name, reason), 0))
        yield failures
        yield _counter(
            "nv_inference_count",
            "Number of inferences performed (does not include cached requests)",
            {name: its.rows for name, its in counted.items()},
            labels,
        )
        yield _counter(
            "nv_inference_exec_count",
            "Number of model executions performed (does not include cached requests)",
            {name: its.batches for name, its in counted.items()},
            labels,
        )
        for step, documentation, ns in (
            (
                "request",
                "Cumulative inference request duration in microseconds (includes cached requests)",
                {name: its.success.ns for name, its in counted.items()},
            ),
            (
                "queue",
                "Cumulative inference queuing duration in microseconds (includes cached requests)",
                {name: its.queue.ns for name, its in counted.items()},
            ),
            (
                "compute_input",
                "Cumulative compute input duration in microseconds (does not include cached requests)",
                dict.fromkeys(counted, 0),
            ),
            (
                "compute_infer",
                "Cumulative compute inference duration in microseconds (does not include cached requests)",
                {name: its.compute.ns for name, its in counted.items()},
            ),
            (
                "compute_output",
                "Cumulative inference compute output duration in microseconds (does not include cached requests)",
                dict.fromkeys(counted, 0),
            ),
        ):
            yield _counter(
                f"nv_inference_{step}_duration_us",
                documentation,
                {name: its // 1000 for name, its in ns.items()},
                labels,
            )
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests awaiting execution per-model.",
            labels=("model", "version"),
        )
        for name, count in metrics.queued_requests().items():
            pending.add_metric((name, metrics.versions[name]), count)
        yield pending


def _counter(name: str, documentation: str, counts: Mapping[str, int], labels: Mapping[str, dict[str, str]]) -> Metric:
    metric = Metric(name, documentation, UNSUFFIXED)
    for model, its in labels.items():
        metric.add_sample(name, its, counts[model])
    return metric
