"""Metrics of a server, for Prometheus and for the statistics of the Open Inference Protocol."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import NamedTuple

from prometheus_client import Gauge, ProcessCollector

from fuseline.serve.batching.batcher import BatchedRows, BatchStats, Misses
from fuseline.serve.batching.departure import BATCH_REASONS, BatchReason
from fuseline.serve.batching.latency_control import Decision
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.metrics.expiring_registry import ExpiringRegistry
from fuseline.serve.metrics.fast_metrics import Counter, CounterChild, Histogram, HistogramChild, VersionKey
from fuseline.serve.metrics.inference_statistics import InferenceStatistics, statistics_key
from fuseline.serve.metrics.latency_metrics import LatencyMetrics
from fuseline.serve.metrics.log_metrics import show_log
from fuseline.serve.model import Model
from fuseline.serve.tracing.tracing import Tracer
from fuseline.serve.version_order import version_order

_MS = (0.25, 0.5, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 10_000)
"""Bounds of the buckets of durations in ms: two or three for each doubling where most answers lie, so that a quantile
read off them is right within a quarter."""

_SECONDS = tuple(ms / 1000 for ms in _MS)
_LATE_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_MISS_SECONDS = (*(-seconds for seconds in reversed(_LATE_SECONDS)), 0, *_LATE_SECONDS)
_LOAD_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ROWS = tuple(2**exponent for exponent in range(11))


class Metrics:
    """The counters of one server, in a registry of its own. Labels hold served names only, never a client's words.

    What was counted for a version that is served no more is dropped after a while: see `ExpiringRegistry`.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        *,
        served: Callable[[], Iterable[VersionKey]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        process: str = "",
    ) -> None:
        """Begin with zeros. Requests and batches are traced by `tracer`; None: they are not.

        `served` returns the versions that are served now; None: those that are watched. Any thread may call it.
        `process` is the title of this process among those that share the work.
        """
        self.tracer = tracer
        self.feed = FeedSource(self._request_counts, self._queued_rows_now, process=process)
        """Tells whoever watches of batches and requests."""
        self.registry = ExpiringRegistry(served or self._watched_versions, self._forget, clock)
        ProcessCollector(registry=self.registry)
        show_log(self.registry)
        self._requests = Counter(
            "fuseline_requests",
            "Requests answered, by gRPC status.",
            ["method", "model", "version", "code"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "fuseline_request_seconds",
            "From a request's arrival in the service to its answer.",
            ["method", "model", "version"],
            bounds=_SECONDS,
            registry=self.registry,
        )
        self._preprocess_seconds = Histogram(
            "fuseline_preprocess_seconds",
            "Decoding of a request's encoded images, waiting for a thread included.",
            ["model", "version"],
            bounds=_SECONDS,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "fuseline_queue_seconds",
            "How long the oldest request of a batch had waited when it started.",
            ["model", "version"],
            bounds=_SECONDS,
            registry=self.registry,
        )
        self._compute_seconds = Histogram(
            "fuseline_compute_seconds",
            "The backend call of a batch.",
            ["model", "version"],
            bounds=_SECONDS,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "fuseline_batch_rows",
            "Rows of a batch before padding.",
            ["model", "version"],
            bounds=_ROWS,
            registry=self.registry,
        )
        self._padding_rows = Counter(
            "fuseline_padding_rows", "Rows added to fill a bucket.", ["model", "version"], registry=self.registry
        )
        self._batches = Counter(
            "fuseline_batches",
            "Batches, by why they left with the rows that they had: full, deadline, delay, drain, next, idle.",
            ["model", "version", "reason"],
            registry=self.registry,
        )
        self._failed_batches = Counter(
            "fuseline_failed_batches",
            "Batches that the backend failed on.",
            ["model", "version"],
            registry=self.registry,
        )
        self._prediction_misses = Histogram(
            "fuseline_prediction_miss_seconds",
            "How much later than predicted at admission an answer was handed out; below 0: earlier.",
            ["model", "version"],
            bounds=_MISS_SECONDS,
            registry=self.registry,
        )
        self._dropped_requests = Counter(
            "fuseline_dropped_requests",
            "Admitted requests that left the queue because they could not be answered in time any more.",
            ["model", "version"],
            registry=self.registry,
        )
        self._queued_rows = Gauge(
            "fuseline_queued_rows", "Rows that wait now.", ["model", "version"], registry=self.registry
        )
        self._access = Counter(
            "fuseline_access_events",
            "Calls refused without a known token (unauthenticated) or for their role (forbidden), and changes of the "
            "file of token hashes that could not be read (token_file_broken).",
            ["event"],
            registry=self.registry,
        )
        self._info = Gauge(
            "fuseline_model_info",
            "1 for each served model.",
            ["model", "version", "backend", "device", "precision"],
            registry=self.registry,
        )
        self._lanes = Gauge("fuseline_lanes", "Batches computed side by side.", ["model"], registry=self.registry)
        self._warm_up_rate = Gauge(
            "fuseline_warm_up_images_per_second",
            "Images/s under load measured at start-up, by the number of lanes.",
            ["model", "lanes"],
            registry=self.registry,
        )
        self._half_share = Gauge(
            "fuseline_model_half_share",
            "Share of the convolutions and matrix products that the runtime computes in BF16, where it was asked to.",
            ["model"],
            registry=self.registry,
        )
        self._loads = Counter(
            "fuseline_model_loads",
            "Packages that were loaded or refused, and models that were unloaded; the error that refused one.",
            ["model", "outcome", "error"],
            registry=self.registry,
        )
        self._load_seconds = Histogram(
            "fuseline_model_load_seconds",
            "Loading of a package, until it is ready or refused; unloading of a model, until it has answered all.",
            ["model", "outcome"],
            bounds=_LOAD_SECONDS,
            registry=self.registry,
        )
        self._latency = LatencyMetrics(self.registry)
        self.statistics: defaultdict[str, InferenceStatistics] = defaultdict(InferenceStatistics)
        """Statistics of each served version, by `statistics_key`."""
        # Children are kept here, as looking one up by its labels takes longer than counting does.
        self._by_request: dict[tuple[str, str, str, str], tuple[CounterChild, HistogramChild]] = {}
        self._by_version: dict[VersionKey, _BatchChildren] = {}
        self._dropped_by_code: dict[str, int] = {}
        self._watched: list[Model] = []
        self._shown: dict[Gauge, set[tuple[str, ...]]] = {}

    def watch(self, model: Model) -> None:
        """Show `model` and its queue from now on."""
        self._watched.append(model)
        self._show()

    def unwatch(self, model: Model) -> None:
        """Show `model` no more. What was counted for its version stays for a while, unless it comes back."""
        self._watched.remove(model)
        key = (model.name, model.version)
        if key not in self._watched_versions():
            self._latency.hide(key)
        self._show()
        # Versions that went earlier are dropped here too, as nobody may ever collect.
        self.registry.drop_gone()

    def _watched_versions(self) -> set[VersionKey]:
        return {(model.name, model.version) for model in tuple(self._watched)}

    def _forget(self, versions: Set[VersionKey]) -> None:
        """Keep nothing of `versions`, whose series were dropped."""
        for key in self._by_request.copy():
            if key[1:3] in versions:
                counter, _ = self._by_request.pop(key)
                self._dropped_by_code[key[3]] = self._dropped_by_code.get(key[3], 0) + counter.count
        for name, version in versions:
            self._by_version.pop((name, version), None)
            self.statistics.pop(statistics_key(name, version), None)
        self._latency.forget(versions)

    def _show(self) -> None:
        """Bring the gauges up to date with the models that are watched."""
        values: dict[Gauge, dict[tuple[str, ...], float | None]] = {
            gauge: {} for gauge in (self._info, self._lanes, self._warm_up_rate, self._half_share, self._queued_rows)
        }
        # Where only the name is told, the highest version is shown.
        for model in sorted(self._watched, key=lambda each: version_order(each.version)):
            name, backend = model.name, model.backend
            values[self._info][name, model.version, backend.name, backend.device, backend.precision] = 1
            values[self._lanes][name,] = model.lanes.lanes
            for lanes, images_per_s in model.lanes.images_per_s.items():
                values[self._warm_up_rate][name, str(lanes)] = images_per_s
            if backend.half_share is not None:
                values[self._half_share][name,] = backend.half_share
            values[self._queued_rows][name, model.version] = None
        for gauge, by_labels in values.items():
            for labels, value in by_labels.items():
                if value is None:
                    gauge.labels(*labels).set_function(partial(self._queued, *labels))
                else:
                    gauge.labels(*labels).set(value)
            for gone in self._shown.get(gauge, set()) - by_labels.keys():
                gauge.remove(*gone)
            self._shown[gauge] = set(by_labels)

    def _request_counts(self) -> Iterable[tuple[str, str, str, str, int]]:
        counts = self._requests.counts().items()
        return ((method, model, version, code, count) for (method, model, version, code), count in counts)

    def _queued_rows_now(self) -> Iterable[tuple[str, str, int]]:
        # Of the same version, the one that goes and the one that comes may both be watched.
        rows: dict[VersionKey, int] = {}
        for model in self._watched:
            key = model.name, model.version
            rows[key] = rows.get(key, 0) + model.batcher.queued_rows
        return ((*key, count) for key, count in rows.items())

    def _queued(self, name: str, version: str) -> int:
        return sum(
            model.batcher.queued_rows
            for model in tuple(self._watched)
            if (model.name, model.version) == (name, version)
        )

    def count_request(
        self,
        method: str,
        model: str,
        code: str,
        seconds: float,
        batched: BatchedRows | None = None,
        version: str = "",
        exemplar: Mapping[str, str] | None = None,
    ) -> None:
        """Count one answered request. `model` and `version` are empty where no model was found.

        `batched` is the batcher's answer; without it a request of code OK is not in the model's `statistics`.
        `exemplar` has the labels that name the request, if it can be found elsewhere.
        """
        key = (method, model, version, code)
        children = self._by_request.get(key)
        if children is None:
            children = self._requests.labels(*key), self._request_seconds.labels(method, model, version)
            self._by_request[key] = children
        counter, histogram = children
        counter.add()
        histogram.observe(seconds, exemplar)
        if not model:
            return
        if code != "OK":
            self.statistics[statistics_key(model, version)].count_failure(seconds, code)
        elif batched is not None:
            self.statistics[statistics_key(model, version)].count_answer(seconds, batched)

    def count_access(self, event: str) -> None:
        """Count an event of the gate before all calls; see `fuseline.serve.access.gate.Gate`."""
        self._access.labels(event).add()

    def queued_requests(self) -> dict[str, int]:
        """Return the number of requests that wait now for each version that is watched, by `statistics_key`.

        Any thread may ask.
        """
        return {
            statistics_key(model.name, model.version): model.batcher.queued_requests for model in tuple(self._watched)
        }

    def requests_by_code(self) -> dict[str, int]:
        """Return the number of requests that were counted under each gRPC status since the start."""
        counts = self._dropped_by_code.copy()
        for (*_, code), count in self._requests.counts().items():
            counts[code] = counts.get(code, 0) + count
        return counts

    def count_preprocess(
        self, model: str, version: str, seconds: float, exemplar: Mapping[str, str] | None = None
    ) -> None:
        """Count the decoding of one request's images; `exemplar` is as in `count_request`."""
        self._preprocess_seconds.labels(model, version).observe(seconds, exemplar)

    def count_batch(self, model: str, stats: BatchStats, version: str = "") -> None:
        """Count one batch."""
        key = (model, version)
        if (children := self._by_version.get(key)) is None:
            children = self._by_version[key] = _BatchChildren(
                self._queue_seconds.labels(*key),
                self._compute_seconds.labels(*key),
                self._batch_rows.labels(*key),
                self._padding_rows.labels(*key),
                {reason: self._batches.labels(*key, reason) for reason in BATCH_REASONS},
            )
        children.queue_seconds.observe(stats.queue_ms / 1000)
        children.compute_seconds.observe(stats.compute_ms / 1000)
        children.rows.observe(stats.rows)
        children.padding_rows.add(stats.bucket - stats.rows)
        children.by_reason[stats.reason].add()
        if stats.failed:
            self._failed_batches.labels(*key).add()
        if self.tracer is not None:
            self.tracer.count_batch(model, stats)
        counted = self.statistics[statistics_key(model, version)]
        counted.count_batch(stats)
        if self.feed.is_watched:
            self.feed.note_batch(model, version, counted.batches, stats)

    def count_load(self, model: str, outcome: str, error: str, seconds: float) -> None:
        """Count a package that was `loaded` or `refused`, or a model that was `unloaded`.

        `error` is the class of the error by which it was refused.
        """
        self._loads.labels(model, outcome, error).add()
        self._load_seconds.labels(model, outcome).observe(seconds)

    def count_decision(self, model: str, decision: Decision, version: str = "") -> None:
        """Count one decision of `--latency-target`."""
        self._latency.count((model, version), decision)

    def count_misses(self, model: str, misses: Misses, version: str = "") -> None:
        """Count by how much the predictions for the requests of one batch missed."""
        observe = self._prediction_misses.labels(model, version).observe
        for seconds in misses.late_seconds:
            observe(seconds)
        if misses.dropped:
            self._dropped_requests.labels(model, version).add(misses.dropped)


class _BatchChildren(NamedTuple):
    """The metrics that every batch of one version of a model is counted in."""

    queue_seconds: HistogramChild
    compute_seconds: HistogramChild
    rows: HistogramChild
    padding_rows: CounterChild
    by_reason: dict[BatchReason, CounterChild]
