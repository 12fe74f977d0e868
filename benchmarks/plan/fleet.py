"""A fleet of many replicas, simulated by a group of some of them with its share of the arrivals.

A client takes the less busy of two replicas at random. As replicas become many, each one's queue comes to depend on the
others only through the mean of all (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001), so that
a group with its share of the arrivals does as the whole fleet does. Poisson arrivals of which each is kept with one
probability are Poisson arrivals again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.plan.arrivals import Load, Poisson, Stretch
from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.simulation import Loss, Outcome, ServingOptions, simulate
from fuseline.benchmarks.plan.targets import PERCENTILES, Targets, quantile

LARGEST_GROUP = 8
"""Replicas that are simulated together at most. With batches of 32 in 3.7 ms their p99 at 0.9 of capacity lies within
2 % of that of 64 replicas, and at 0.97 it is 12 % above."""
_SMALLEST_GROUP = 4
_MOST_REQUESTS = 80_000
"""Requests of one simulation above which the group becomes smaller, as far as it may."""
_TO_TELL_CAPACITY = 10_000
"""Requests by which capacity is told."""
_BATCHES = 150
"""Time of a steady stretch in largest batches, in which queues come and go."""

Simulate = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of the requests that counted, of all simulations of one case together."""

    rate_per_s: float
    """Requests a second that came to the whole fleet."""
    latency_ms: dict[str, float | None]
    """By percentile of `PERCENTILES`, of all requests; None: so many were never answered."""
    goodput_per_s: float
    """Requests a second that were answered within the latency of the highest percentile."""
    good_share: float
    refused_share: float
    late_share: float
    """Share that the server gave up for their deadline."""
    busy_share: float
    """Share of the lanes' time in which they compute."""
    batch_rows: float
    """Pictures of a batch, on average."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is planned for: a profile, arrivals, and what is asked of their latencies."""

    profile: Profile
    load: Load
    targets: Targets
    deadline_s: float | None = None
    simulate: Simulate = simulate
    _capacities: dict[tuple[ServingOptions, int], float] = field(default_factory=dict, compare=False, repr=False)

    def capacity(self, options: ServingOptions) -> float:
        """Return how many pictures a second one replica answers, however long they take, when far more come."""
        rows = max(1, round(self.load.pictures_per_s / self.load.rate_per_s))
        if (options, rows) not in self._capacities:
            steady = replace(self, load=Poisson(1.0, rows), deadline_s=None)
            # Long queues, in which there is always enough for the largest batch.
            patient = replace(options, max_queue_rows=4 * self.profile.max_batch * self.profile.lanes + 4 * rows)
            patient = replace(patient, max_queue_ms=3_600_000.0)
            factor = 1.5 * self.most_pictures_per_s / rows
            stretch, outcome = steady._run(1, patient, factor, 0, least=_TO_TELL_CAPACITY)
            at = stretch.arrivals.seconds[stretch.counted]
            answered = np.count_nonzero(outcome.answered[stretch.counted])
            self._capacities[options, rows] = min(self.most_pictures_per_s, float(answered * rows / (at[-1] - at[0])))
        return self._capacities[options, rows]

    @property
    def most_pictures_per_s(self) -> float:
        """More pictures a second than one replica answers: those of its lanes without anything else, of its event loop,
        or of cores that only requests and pictures keep busy, which is told of those beside a GPU.
        """
        rows, front_end = self.load.rows, self.profile.front_end
        megabytes = front_end.request_mb * rows
        loop = front_end.loop_seconds + front_end.loop_seconds_per_mb * megabytes
        # On a CPU the lanes compute on the same cores, which the simulation reckons with.
        cores = 0.0 if self.profile.device == "CPU" else self.cpu_seconds(rows) / self.profile.cores
        return min([self.profile.rows_per_s, *(rows / seconds for seconds in (loop, cores) if seconds)])

    def cpu_seconds(self, rows: float) -> float:
        """Return the CPU seconds of all but the lanes for a request of so many pictures."""
        front_end = self.profile.front_end
        return front_end.cpu_seconds + front_end.cpu_seconds_per_mb * front_end.request_mb * rows

    def latencies(
        self, replicas: int, options: ServingOptions, *, factor: float = 1.0, seed: int = 0, least: int | None = None
    ) -> NDArray[np.float64]:
        """Return the seconds of each request that counts, NaN for no answer, at `factor` times the load.

        `least`: how many count; None: as many as it takes to tell how queues come and go.
        """
        stretch, outcome = self._run(replicas, options, factor, seed, least=least)
        return outcome.latency_s[stretch.counted]

    def figures(
        self,
        replicas: int,
        options: ServingOptions,
        *,
        factor: float = 1.0,
        seeds: Sequence[int] = (0,),
        loses: bool = False,
    ) -> Figures:
        """Return what becomes of `factor` times the load; `loses`: after one replica is gone."""
        runs = [self._run(replicas, options, factor, seed, loses) for seed in seeds]
        latency = np.concatenate([outcome.latency_s[stretch.counted] for stretch, outcome in runs])
        refused = np.concatenate([outcome.refused[stretch.counted] for stretch, outcome in runs])
        late = np.concatenate([outcome.late[stretch.counted] for stretch, outcome in runs])
        good, rate = float(np.mean(latency * 1000 <= self.targets.within_ms)), self.load.counted_per_s * factor
        told = {name: quantile(latency, percent) for name, percent in PERCENTILES.items()}
        batches = sum(float(outcome.batches.sum()) for _, outcome in runs)
        return Figures(
            rate_per_s=rate,
            latency_ms={name: seconds * 1000 if np.isfinite(seconds) else None for name, seconds in told.items()},
            goodput_per_s=good * rate,
            good_share=good,
            refused_share=float(refused.mean()),
            late_share=float(late.mean()),
            busy_share=float(np.mean([outcome.busy_share.mean() for _, outcome in runs])),
            batch_rows=sum(float(outcome.batch_rows @ outcome.batches) for _, outcome in runs) / max(1.0, batches),
        )

    def _run(
        self,
        replicas: int,
        options: ServingOptions,
        factor: float,
        seed: int,
        loses: bool = False,
        least: int | None = None,
    ) -> tuple[Stretch, Outcome]:
        group, lead, least = self._sizes(replicas, options, factor, least)
        losses: list[Loss] = []
        if loses and group < replicas:
            # One of a group would be a larger part than one of the fleet: the others' load rises as the fleet's does.
            factor *= replicas / (replicas - 1)
        stretch = self.load.stretch(group / replicas, factor, lead, least, seed)
        if loses and group == replicas:
            losses = [Loss(at_s=float(stretch.arrivals.seconds[stretch.counted][0]), replica=0)]
        outcome = self.simulate(
            self.profile,
            stretch.arrivals,
            replicas=group,
            options=options,
            deadline_s=self.deadline_s,
            losses=tuple(losses),
            seed=seed,
        )
        return stretch, outcome

    def _sizes(self, replicas: int, options: ServingOptions, factor: float, least: int | None) -> tuple[int, int, int]:
        """Replicas that are simulated, requests that come before those that count, and how many do."""
        rows = self.load.pictures_per_s / self.load.rate_per_s
        usage = factor * self.load.pictures_per_s / (replicas * self.most_pictures_per_s)
        seconds = max(
            bucket.median for bucket in self.profile.buckets if bucket.rows <= (options.max_batch or math.inf)
        )
        smallest, most = (_SMALLEST_GROUP, _MOST_REQUESTS) if least is None else (_SMALLEST_GROUP // 2, 2 * least)
        for group in range(min(replicas, LARGEST_GROUP), 0, -1):
            if usage > 1:
                # Nothing is as it stays until queues are full, at most as long as they may be.
                waiting = min(options.max_queue_rows, self.most_pictures_per_s * options.max_queue_ms / 1000)
                lead, count = group * waiting / rows * usage / (usage - 1), self.targets.least_requests
            else:
                in_time = factor * self.load.rate_per_s * group / replicas * _BATCHES * seconds
                count = max(self.targets.least_requests, in_time) if least is None else least
                lead = count / 4
            lead, count = min(round(lead), _MOST_REQUESTS // 2), min(round(count), _MOST_REQUESTS)
            if group <= smallest or self.load.requests(group / replicas, lead, count) <= most:
                return group, lead, count
        raise AssertionError
