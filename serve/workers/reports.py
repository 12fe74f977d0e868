"""Reports of what each process has counted, and their sum."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from pydantic import BaseModel

from fuseline.serve.metrics.exposition import metrics_text
from fuseline.serve.metrics.fast_metrics import VersionKey
from fuseline.serve.metrics.inference_statistics import DurationSum, InferenceStatistics, version_of_key
from fuseline.serve.metrics.tls_metrics import EXPIRY
from fuseline.serve.metrics.triton_metrics import UNSUFFIXED

_EARLIEST = ("_created", "process_start_time_seconds", EXPIRY)
"""Endings of the names of samples whose smallest value counts, not their sum."""


class LatestExemplar(BaseModel):
    """The latest observation in a bucket whose request can be found elsewhere."""

    labels: dict[str, str]
    value: float
    timestamp: float


class Sample(BaseModel):
    """One number of a metric."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: LatestExemplar | None = None


class Family(BaseModel):
    """One metric, with a sample for each set of labels and, in a histogram, for each bucket."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]


class ModelCounts(BaseModel):
    """`InferenceStatistics` of one model, without its clock. Durations are (count, nanoseconds)."""

    last_inference_ms: int = 0
    rows: int = 0
    batches: int = 0
    compute_by_batch_rows: dict[int, tuple[int, int]] = {}
    success: tuple[int, int] = (0, 0)
    fail: tuple[int, int] = (0, 0)
    queue: tuple[int, int] = (0, 0)
    compute: tuple[int, int] = (0, 0)


class Report(BaseModel):
    """Everything that one process has counted since its start."""

    families: list[Family] = []
    models: dict[str, ModelCounts] = {}
    dropped: list[VersionKey] = []
    """Versions whose counts in earlier reports the process has dropped, as they went long ago."""

    def counts(self) -> "Report":
        """Return the part that lasts when the process ends: counters and histograms, no gauges."""
        lasting = [family for family in self.families if family.type in {"counter", "histogram", UNSUFFIXED}]
        return Report(families=lasting, models=self.models)

    def versions(self) -> set[VersionKey]:
        """Return the versions of models that something is told of."""
        told = {_version_of(sample) for family in self.families for sample in family.samples}
        return {key for key in told | set(map(version_of_key, self.models)) if key[1]}

    def about(self, versions: Set[VersionKey]) -> "Report":
        """Return the counts of `versions` alone."""
        return self.counts()._where(lambda key: key in versions)

    def without(self, versions: Set[VersionKey]) -> "Report":
        """Return all but what is told of `versions`."""
        return self._where(lambda key: key not in versions)

    def _where(self, holds: Callable[[VersionKey], bool]) -> "Report":
        families = [
            family.model_copy(update={"samples": [each for each in family.samples if holds(_version_of(each))]})
            for family in self.families
        ]
        models = {key: counts for key, counts in self.models.items() if holds(version_of_key(key))}
        return Report(families=families, models=models)

    def totals(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of the samples called `name`, by the value of `label`."""
        sums: dict[str, float] = {}
        for family in self.families:
            for sample in family.samples:
                if sample.name == name:
                    sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
        return sums


def report_of(registry: CollectorRegistry, statistics: Mapping[str, InferenceStatistics]) -> Report:
    """Return the report of what `registry` and `statistics` hold now."""
    return Report(
        families=[
            Family(
                name=metric.name,
                documentation=metric.documentation,
                type=metric.type,
                samples=[
                    Sample(name=s.name, labels=s.labels, value=s.value, exemplar=_latest(s.exemplar))
                    for s in metric.samples
                ],
            )
            for metric in registry.collect()
        ],
        models={name: _counts_of(counted) for name, counted in statistics.items()},
    )


def summed(reports: Iterable[Report]) -> Report:
    """Return the sums of counters, histograms and gauges alike, and the earliest of start times."""
    families: dict[str, Family] = {}
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    models: dict[str, ModelCounts] = {}
    for report in reports:
        for family in report.families:
            total = families.setdefault(family.name, family.model_copy(update={"samples": []}))
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                if (known := samples.get(key)) is None:
                    samples[key] = known = sample.model_copy()
                    total.samples.append(known)
                elif sample.name.endswith(_EARLIEST):
                    known.value = min(known.value, sample.value)
                else:
                    known.value += sample.value
                    known.exemplar = max(
                        (its for its in (known.exemplar, sample.exemplar) if its is not None),
                        key=lambda its: its.timestamp,
                        default=None,
                    )
        for name, counts in report.models.items():
            models[name] = _sum_of_two(models[name], counts) if name in models else counts
    return Report(families=list(families.values()), models=models)


def statistics_from(models: Mapping[str, ModelCounts]) -> dict[str, InferenceStatistics]:
    """Return `models` as `InferenceStatistics`, by model name."""
    return {name: _statistics_from(counts) for name, counts in models.items()}


def report_text(report: Report, *, open_metrics: bool = False) -> bytes:
    """Return the metrics of `report` in Prometheus' text format, or in OpenMetrics."""
    registry = CollectorRegistry()
    registry.register(ReportCollector(report))
    return metrics_text(registry, open_metrics=open_metrics)


class ReportCollector(Collector):
    """A report as a collector for a registry."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield the report's metrics for the registry."""
        for family in self._report.families:
            metric = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value, exemplar=_exemplar_from(sample.exemplar))
            yield metric


def _version_of(sample: Sample) -> VersionKey:
    return sample.labels.get("model", ""), sample.labels.get("version", "")


def _latest(exemplar: Exemplar | None) -> LatestExemplar | None:
    if exemplar is None:
        return None
    assert exemplar.timestamp is not None
    return LatestExemplar(labels=exemplar.labels, value=exemplar.value, timestamp=float(exemplar.timestamp))


def _exemplar_from(latest: LatestExemplar | None) -> Exemplar | None:
    return None if latest is None else Exemplar(latest.labels, latest.value, latest.timestamp)


def _counts_of(statistics: InferenceStatistics) -> ModelCounts:
    durations: dict[str, Any] = {
        name: _pair(getattr(statistics, name)) for name in ("success", "fail", "queue", "compute")
    }
    return ModelCounts(
        last_inference_ms=statistics.last_inference_ms,
        rows=statistics.rows,
        batches=statistics.batches,
        compute_by_batch_rows={rows: _pair(sum_) for rows, sum_ in statistics.compute_by_batch_rows.items()},
        **durations,
    )


def _statistics_from(counts: ModelCounts) -> InferenceStatistics:
    statistics = InferenceStatistics()
    statistics.last_inference_ms = counts.last_inference_ms
    statistics.rows = counts.rows
    statistics.batches = counts.batches
    statistics.compute_by_batch_rows = {
        rows: DurationSum(*pair) for rows, pair in sorted(counts.compute_by_batch_rows.items())
    }
    for name in ("success", "fail", "queue", "compute"):
        setattr(statistics, name, DurationSum(*getattr(counts, name)))
    return statistics


def _sum_of_two(one: ModelCounts, other: ModelCounts) -> ModelCounts:
    by_rows = dict(one.compute_by_batch_rows)
    for rows, pair in other.compute_by_batch_rows.items():
        by_rows[rows] = _added(by_rows.get(rows, (0, 0)), pair)
    return ModelCounts(
        last_inference_ms=max(one.last_inference_ms, other.last_inference_ms),
        rows=one.rows + other.rows,
        batches=one.batches + other.batches,
        compute_by_batch_rows=by_rows,
        success=_added(one.success, other.success),
        fail=_added(one.fail, other.fail),
        queue=_added(one.queue, other.queue),
        compute=_added(one.compute, other.compute),
    )


def _pair(total: DurationSum) -> tuple[int, int]:
    return total.count, total.ns


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
