"""The fewest replicas that meet the targets, and the settings with which they do."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from fuseline.benchmarks.plan.fleet import Fleet
from fuseline.benchmarks.plan.simulation import ServingOptions
from fuseline.benchmarks.plan.targets import PERCENTILES
from fuseline.serve.errors import PlanError

_SEEDS = 5
"""Simulations after which a case that is still open counts as one that misses the targets."""
_FEWEST_SEEDS = 3
_CLEAR = 2.0
"""Ratio to the late requests that there may be beyond which, or below whose inverse, one simulation is enough."""
_HOPELESS = 10.0
"""The same ratio of a short simulation beyond which no longer one is made."""
_STUDENT = {3: 2.92, 4: 2.35, 5: 2.13}
"""One-sided 95 % quantile of Student's t by number of simulations."""
_BETTER = 0.95
"""Part of the latency to which another setting must bring it to be taken instead of the server's default."""
_MUCH_WORSE = 1.3
"""Multiple of the latency to which smaller batches bring it that aren't tried again."""
_STEP = 0.005
"""Part of a large fleet within which its number of replicas is told."""
_MOST_USAGE = 0.97
"""Part of capacity up to which a load, headroom included, can be told to be borne: nearer to it queues grow and shrink
over longer times than are simulated."""
_IDLE = 0.01
"""Load, as a part of capacity, below which more replicas help no more."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a search."""

    replicas: int
    options: ServingOptions
    step: int
    """The fewest replicas are more than `replicas - step`."""


@dataclass
class Search:
    """Decisions on one fleet, each made once.

    A case meets the targets if it does with 95 % confidence, by simulations of several seeds; an open one counts as a
    miss.
    """

    fleet: Fleet
    headroom: float = 0.1
    """Part of the load by which it may grow with the targets still met."""
    most_replicas: int = 100_000
    tell: Callable[[str], None] = lambda _: None
    _met: dict[tuple[int, ServingOptions], bool] = field(default_factory=dict)
    _worse: dict[ServingOptions, int] = field(default_factory=dict)
    """Settings with smaller batches that need not be tried for so many replicas, nor for fewer: more of the load would
    come to each.
    """
    _scores: dict[tuple[int, ServingOptions], float] = field(default_factory=dict)

    def fewest(self) -> Found:
        """Return the fewest replicas that meet the targets, and the settings.

        Raises:
            PlanError: no number up to `most_replicas` does.
        """
        least = self.fewest_by_capacity()
        if least > self.most_replicas:
            raise PlanError(
                f"{self.most_replicas:,} replicas can't take {self._pictures():,.0f} pictures/s: each computes at most "
                f"{self.fleet.most_pictures_per_s:,.0f}, so at least {least:,} are needed; raise --max-replicas"
            )
        high, options = self._first_that_meets(least)
        low = least - 1
        while high - low > (step := max(1, int(high * _STEP))):
            middle = (low + high) // 2
            if self._meets_with_best(middle, options):
                high, options = middle, self._that_meets(middle, options)
            else:
                low = middle
        best = self._best_options(high, options)
        return Found(high, best if self.meets(high, best) else options, step)

    def fewest_by_capacity(self) -> int:
        """Return a number of replicas below which they compute hardly more than comes, or less."""
        asked = max(
            self.fleet.load.least_pictures_per_s(PERCENTILES[name] / 100, limit / 1000)
            for name, limit in self.fleet.targets.limits_ms.items()
        )
        return max(1, math.ceil((1 + self.headroom) * asked / (_MOST_USAGE * self.fleet.most_pictures_per_s)))

    def meets(self, replicas: int, options: ServingOptions) -> bool:
        """Return whether they meet the targets with the headroom."""
        key = replicas, options
        if key not in self._met:
            self.tell(f"{replicas:,} replicas, {flags_of(options) or 'the default settings'}")
            self._met[key] = self._decided(replicas, options)
        return self._met[key]

    def _decided(self, replicas: int, options: ServingOptions) -> bool:
        targets, factor = self.fleet.targets, 1 + self.headroom
        if self._pictures() > _MOST_USAGE * replicas * self.fleet.capacity(options):
            return False
        first = self.fleet.latencies(replicas, options, factor=factor, least=targets.least_requests)
        if targets.late_ratio(first) > _HOPELESS:
            return False
        ratios: list[float] = []
        for seed in range(_SEEDS):
            ratios.append(targets.late_ratio(self.fleet.latencies(replicas, options, factor=factor, seed=seed)))
            if len(ratios) == 1 and not 1 / _CLEAR <= ratios[0] <= _CLEAR:
                return ratios[0] < 1
            if len(ratios) >= _FEWEST_SEEDS:
                mean = statistics.fmean(ratios)
                doubt = _STUDENT[len(ratios)] * statistics.stdev(ratios) / math.sqrt(len(ratios))
                if mean + doubt <= 1:
                    return True
                if mean - doubt > 1:
                    return False
        return False

    def _first_that_meets(self, least: int) -> tuple[int, ServingOptions]:
        """Some number of replicas that meets the targets, from `least` on, by ever larger steps."""
        options = ServingOptions()
        # Where even almost idle replicas are too slow, one look is enough.
        peak = (1 + self.headroom) * self.fleet.load.peak_pictures_per_s
        enough = int(min(self.most_replicas, max(1.0, peak / self.fleet.most_pictures_per_s) / _IDLE))
        enough = max(enough, least)
        if enough < self.most_replicas and not self._meets_with_best(enough, options):
            raise PlanError(self._best_possible(enough, self._best_options(enough, options)))
        for exponent in count():
            replicas = min(enough, least + (2**exponent - 1) * max(1, least // 20))
            if self._meets_with_best(replicas, options):
                return replicas, self._that_meets(replicas, options)
            if replicas == enough:
                raise PlanError(self._best_possible(replicas, self._best_options(replicas, options)))
        raise AssertionError

    def _meets_with_best(self, replicas: int, options: ServingOptions) -> bool:
        return self.meets(replicas, options) or self.meets(replicas, self._best_options(replicas, options))

    def _that_meets(self, replicas: int, options: ServingOptions) -> ServingOptions:
        return options if self.meets(replicas, options) else self._best_options(replicas, options)

    def _best_possible(self, replicas: int, options: ServingOptions) -> str:
        figures = self.fleet.figures(replicas, options, factor=1 + self.headroom)
        told = ", ".join(
            f"{name} {'never answered' if (value := figures.latency_ms[name]) is None else f'{value:.3g} ms'}"
            for name in self.fleet.targets.limits_ms
        )
        if replicas == self.most_replicas:
            return (
                f"{replicas:,} replicas don't keep {self.fleet.targets}; the best of them is {told}; raise "
                "--max-replicas, or allow more time"
            )
        return f"no number of replicas keeps {self.fleet.targets}; almost idle ones have {told}: allow more time"

    def _best_options(self, replicas: int, options: ServingOptions) -> ServingOptions:
        """Settings by which latencies of that many replicas are shortest: one setting after the other is tried."""
        best = options
        for choices in (self._max_batches, self._delays, self._latency_targets):
            for tried in choices(best):
                if replicas <= self._worse.get(tried, 0):
                    continue
                score, best_score = self._score(replicas, tried), self._score(replicas, best)
                if score > _MUCH_WORSE * best_score and choices == self._max_batches:
                    self._worse[tried] = replicas
                elif score < _BETTER * best_score:
                    best = tried
        return best

    def _score(self, replicas: int, options: ServingOptions) -> float:
        key = replicas, options
        if key not in self._scores:
            targets = self.fleet.targets
            latencies = self.fleet.latencies(replicas, options, factor=1 + self.headroom, least=targets.least_requests)
            tightness = targets.tightness(latencies)
            # Where requests are never answered, fewer of them are better.
            self._scores[key] = tightness if math.isfinite(tightness) else 1e6 * targets.late_ratio(latencies)
        return self._scores[key]

    def _max_batches(self, options: ServingOptions) -> Iterator[ServingOptions]:
        rows = [bucket.rows for bucket in self.fleet.profile.buckets if bucket.rows >= self.fleet.load.rows]
        yield from (replace(options, max_batch=most) for most in reversed(rows[-4:-1]))

    def _delays(self, options: ServingOptions) -> Iterator[ServingOptions]:
        within = self.fleet.targets.within_ms
        yield from (replace(options, max_delay_ms=_rounded(part * within)) for part in (0.05, 0.2))

    def _latency_targets(self, options: ServingOptions) -> Iterator[ServingOptions]:
        if "p99" in self.fleet.targets.limits_ms:
            yield replace(options, latency_target_ms=_rounded(0.9 * self.fleet.targets.limits_ms["p99"]))

    def _pictures(self) -> float:
        return self.fleet.load.pictures_per_s * (1 + self.headroom)


def flags_of(options: ServingOptions) -> str:
    """Return the flags of `fuseline serve` that `options` stand for: those that differ from its defaults."""
    default = ServingOptions()
    flags = {
        "--max-batch": (options.max_batch, default.max_batch),
        "--max-delay-ms": (options.max_delay_ms, default.max_delay_ms),
        "--latency-target": (options.latency_target_ms, default.latency_target_ms),
        "--max-queue-ms": (options.max_queue_ms, default.max_queue_ms),
        "--max-queue-rows": (options.max_queue_rows, default.max_queue_rows),
    }
    return " ".join(
        f"{flag} {value:g}{'ms' if flag == '--latency-target' else ''}"
        for flag, (value, usual) in flags.items()
        if value is not None and value != usual
    )


def _rounded(value: float) -> float:
    """Two significant digits, as a person would set it."""
    return float(f"{value:.2g}")
