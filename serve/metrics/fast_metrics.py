"""Counters and histograms for Prometheus that cost a request next to nothing.

`prometheus_client`'s own metrics take a lock for each number and walk through the buckets: 14 µs for one counter and
one histogram, as much as everything else that is done for a request in Python. These are written by one thread, the
event loop's, and read by any other: a scrape may see a count whose sum is still to be added.

One set of labels is a series. Those labelled `model` and `version` can be dropped by version.
"""

import time
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

VersionKey = tuple[str, str]
"""The name and the version of a model."""


class CounterChild:
    """The count for one set of labels: a child, in the words of Prometheus."""

    __slots__ = ("count", "created")

    def __init__(self) -> None:
        self.count = 0
        self.created = time.time()

    def add(self, number: int = 1) -> None:
        """Count `number` more."""
        self.count += number

    @property
    def activity(self) -> int:
        """A number that changes with each count."""
        return self.count


class HistogramChild:
    """The observations for one set of labels."""

    __slots__ = ("_bounds", "counts", "created", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Number of observations in each bucket alone; the last bucket is unbounded."""
        self.sum = 0.0
        self.created = time.time()
        self.exemplars: dict[int, Exemplar] = {}
        """The latest observation with labels of its own, by the number of its bucket."""

    def observe(self, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Count `value` in the first bucket whose bound it doesn't pass; `labels` say whose it is, if that is known."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if labels is not None:
            self.exemplars[bucket] = Exemplar(dict(labels), value, time.time())

    @property
    def activity(self) -> int:
        """A number that changes with each observation."""
        return sum(self.counts)


ChildT = TypeVar("ChildT", CounterChild, HistogramChild)


class FastMetric(Collector, Generic[ChildT]):
    """The children of one metric, by the values of their labels."""

    def __init__(self, name: str, help: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._help, self._labels = name, help, tuple(labels)
        self._children: dict[tuple[str, ...], ChildT] = {}
        self._place = (labels.index("model"), labels.index("version")) if {"model", "version"} <= set(labels) else None
        registry.register(self)

    @abstractmethod
    def labels(self, *values: str) -> ChildT:
        """Return the child of these labels, which is shown from now on."""

    def activity(self) -> dict[VersionKey, int]:
        """Return, for each version that something was counted for, a number that changes with each count."""
        totals: dict[VersionKey, int] = {}
        if self._place is not None:
            for values, child in self._children.copy().items():
                key = self._key(values, self._place)
                totals[key] = totals.get(key, 0) + child.activity
        return totals

    def drop(self, versions: Set[VersionKey]) -> None:
        """Show the children of `versions` no more. One that is asked for again begins at 0."""
        if self._place is not None:
            for values in self._children.copy():
                if self._key(values, self._place) in versions:
                    del self._children[values]

    @staticmethod
    def _key(values: tuple[str, ...], place: tuple[int, int]) -> VersionKey:
        return values[place[0]], values[place[1]]


class Counter(FastMetric[CounterChild]):
    """A counter in `registry`, as `prometheus_client.Counter` shows it."""

    def labels(self, *values: str) -> CounterChild:
        """See `FastMetric.labels`."""
        return self._children.setdefault(values, CounterChild())

    def counts(self) -> dict[tuple[str, ...], int]:
        """Return every count, by its labels."""
        return {values: child.count for values, child in self._children.copy().items()}

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counts for the registry."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.copy().items():
            family.add_metric(values, child.count, created=child.created)
        yield family


class Histogram(FastMetric[HistogramChild]):
    """A histogram in `registry`, as `prometheus_client.Histogram` shows it."""

    def __init__(
        self, name: str, help: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        """Register an empty histogram; `bounds` are those of the buckets, ascending, without the infinite one."""
        self._bounds = tuple(map(float, bounds))
        super().__init__(name, help, labels, registry)

    def labels(self, *values: str) -> HistogramChild:
        """See `FastMetric.labels`."""
        if (child := self._children.get(values)) is None:
            child = self._children[values] = HistogramChild(self._bounds)
        return child

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histograms for the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.copy().items():
            total, buckets = 0, list[tuple[str, float] | tuple[str, float, Exemplar]]()
            exemplars = child.exemplars.copy()
            bounds = (*self._bounds, float("inf"))
            for number, (bound, count) in enumerate(zip(bounds, child.counts.copy(), strict=True)):
                total += count
                le = floatToGoString(bound)  # type: ignore[no-untyped-call]
                exemplar = exemplars.get(number)
                buckets.append((le, float(total)) if exemplar is None else (le, float(total), exemplar))
            family.add_metric(values, buckets, child.sum)
            family.add_sample(f"{self._name}_created", dict(zip(self._labels, values, strict=True)), child.created)
        yield family
