"""Triton's metrics of inference, by its names, from what is counted anyway.

Names, units and meanings are those of https://github.com/triton-inference-server/server, docs/user_guide/metrics.md.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.metrics.inference_statistics import InferenceStatistics, version_of_key
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
    """Shows what `metrics` has counted by Triton's names, for each version of a model."""

    def __init__(self, metrics: Metrics) -> None:
        """Show `metrics`; its registry is to be given this collector."""
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield Triton's metrics for the registry."""
        pending = self._metrics.queued_requests()
        counted = {key: InferenceStatistics() for key in pending} | self._metrics.statistics.copy()
        labels = {}
        for key in counted:
            name, version = version_of_key(key)
            labels[key] = {"model": name, "version": version}
        yield _counter(
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
            {key: its.success.count for key, its in counted.items()},
            labels,
        )
        failures = Metric(
            "nv_inference_request_failure", "Number of failed inference requests, all batch sizes", UNSUFFIXED
        )
        for key, its in counted.items():
            by_reason = dict.fromkeys(_REASONS, 0)
            for code, count in its.failed_by_code.copy().items():
                by_reason[_REASON_OF_CODE.get(code, "OTHER")] += count
            for reason, count in by_reason.items():
                failures.add_sample(failures.name, labels[key] | {"reason": reason}, count)
        yield failures
        yield _counter(
            "nv_inference_count",
            "Number of inferences performed (does not include cached requests)",
            {key: its.rows for key, its in counted.items()},
            labels,
        )
        yield _counter(
            "nv_inference_exec_count",
            "Number of model executions performed (does not include cached requests)",
            {key: its.batches for key, its in counted.items()},
            labels,
        )
        for step, documentation, ns in (
            (
                "request",
                "Cumulative inference request duration in microseconds (includes cached requests)",
                {key: its.success.ns for key, its in counted.items()},
            ),
            (
                "queue",
                "Cumulative inference queuing duration in microseconds (includes cached requests)",
                {key: its.queue.ns for key, its in counted.items()},
            ),
            (
                "compute_input",
                "Cumulative compute input duration in microseconds (does not include cached requests)",
                dict.fromkeys(counted, 0),
            ),
            (
                "compute_infer",
                "Cumulative compute inference duration in microseconds (does not include cached requests)",
                {key: its.compute.ns for key, its in counted.items()},
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
                {key: its // 1000 for key, its in ns.items()},
                labels,
            )
        waiting = GaugeMetricFamily(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests awaiting execution per-model.",
            labels=("model", "version"),
        )
        for key, count in pending.items():
            waiting.add_metric(tuple(labels[key].values()), count)
        yield waiting


def _counter(name: str, documentation: str, counts: Mapping[str, int], labels: Mapping[str, dict[str, str]]) -> Metric:
    metric = Metric(name, documentation, UNSUFFIXED)
    for key, its in labels.items():
        metric.add_sample(name, its, counts[key])
    return metric
