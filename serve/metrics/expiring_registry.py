"""A registry that forgets versions which are served no more, so that models which come and go don't fill it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from fuseline.serve.metrics.fast_metrics import FastMetric, VersionKey

KEPT_S = 600.0
"""Seconds for which the series of a version stay when it is served no more and nothing is counted for it: a scrape has
its last counts by then, and a version that comes back before that goes on with them."""


class ExpiringRegistry(CollectorRegistry):
    """Drops all series of a version at once, before what it shows is collected. Series of other versions stay as they
    are, and so do those without a version.
    """

    def __init__(
        self,
        served: Callable[[], Iterable[VersionKey]],
        on_dropped: Callable[[Set[VersionKey]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin empty. `served` returns what is served now; `on_dropped` is told what was dropped."""
        self._served = served
        self._on_dropped = on_dropped
        self._clock = clock
        self._metrics: list[FastMetric[Any]] = []
        # When each version that is served no more was last seen to count, and a number that changes when it does.
        self._gone: dict[VersionKey, tuple[float, int]] = {}
        self._dropped: set[VersionKey] = set()
        self._dropping = threading.Lock()
        super().__init__()

    def register(self, collector: Collector) -> None:
        """See `CollectorRegistry.register`."""
        super().register(collector)
        if isinstance(collector, FastMetric):
            self._metrics.append(collector)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all collectors, those of versions that went long ago left out. Any thread may ask."""
        self.drop_gone()
        yield from super().collect()

    def drop_gone(self) -> None:
        """Drop the versions that are not served, and for which nothing was counted for `KEPT_S`. Any thread may ask."""
        with self._dropping:
            now, served = self._clock(), set(self._served())
            activity: dict[VersionKey, int] = {}
            for metric in self._metrics:
                for key, count in metric.activity().items():
                    activity[key] = activity.get(key, 0) + count
            gone = {key: count for key, count in activity.items() if key[1] and key not in served}
            self._gone = {
                key: known if (known := self._gone.get(key)) is not None and known[1] == count else (now, count)
                for key, count in gone.items()
            }
            dropped = {key for key, (since, _) in self._gone.items() if now - since >= KEPT_S}
            if not dropped:
                return
            for metric in self._metrics:
                metric.drop(dropped)
            self._dropped |= dropped
            # Only now: whoever keeps children of these metrics must find new ones from here on.
            self._on_dropped(dropped)

    def take_dropped(self) -> list[VersionKey]:
        """Return the versions that were dropped since the last call."""
        dropped, self._dropped = self._dropped, set()
        return sorted(dropped)
