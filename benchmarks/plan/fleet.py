"""A fleet of many replicas, simulated by a group of some of them with its share of the arrivals.

A client takes the less busy of two replicas at random. As replicas become many, each one's queue comes to depend on the
others only through the mean of all (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001), so that
a group with its share of the arrivals does as the whole fleet does. Poisson arrivals of which each is kept with one
probability are Poisson arrivals again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.plan.arrivals import Load, Stretch
from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.simulation import Loss, Outcome, ServingOptions, simulate
from fuseline.benchmarks.plan.targets import PERCENTILES, Targets, quantile

LARGEST_GROUP = 16
"""Replicas that are simulated together at most."""
_SMALLEST_GROUP = 4
_MOST_REQUESTS = 150_000
"""Requests of one simulation above which the group becomes smaller, as far as it may."""

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

    @property
    def replica_pictures_per_s(self) -> float:
        """Most pictures a second of one replica: of its lanes, and of the event loop that all its requests pass."""
        rows, front_end = self.load.rows, self.profile.front_end
        loop = front_end.loop_seconds + front_end.loop_seconds_per_mb * front_end.request_mb * rows
        lanes = self.profile.rows_per_s
        return min(lanes, rows / loop) if loop else lanes

    def latencies(
        self, replicas: int, options: ServingOptions, *, factor: float = 1.0, seed: int = 0
    ) -> NDArray[np.float64]:
        """Return the seconds of each request that counts, NaN for no answer, at `factor` times the load."""
        stretch, outcome = self._run(replicas, options, factor, seed)
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
        good = float(np.mean(latency * 1000 <= self.targets.within_ms))
        share = self._group(replicas, factor) / replicas
        rate = len(latency) / sum(stretch.counted_s for stretch, _ in runs) / share
        told = {name: quantile(latency, percent) for name, percent in PERCENTILES.items()}
        return Figures(
            rate_per_s=rate,
            latency_ms={name: seconds * 1000 if np.isfinite(seconds) else None for name, seconds in told.items()},
            goodput_per_s=good * rate,
            good_share=good,
            refused_share=float(refused.mean()),
            late_share=float(late.mean()),
            busy_share=float(np.mean([outcome.busy_share.mean() for _, outcome in runs])),
            batch_rows=float(
                sum(outcome.batch_rows @ outcome.batches for _, outcome in runs)
                / max(1, sum(outcome.batches.sum() for _, outcome in runs))
            ),
        )

    def _run(
        self, replicas: int, options: ServingOptions, factor: float, seed: int, loses: bool = False
    ) -> tuple[Stretch, Outcome]:
        group = self._group(replicas, factor)
        losses: list[Loss] = []
        if loses and group < replicas:
            # One of a group would be a larger part than one of the fleet: the others' load rises as the fleet's does.
            factor *= replicas / (replicas - 1)
        stretch = self.load.stretch(group / replicas, factor, self.targets.least_requests, seed)
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

    def _group(self, replicas: int, factor: float) -> int:
        group = min(replicas, LARGEST_GROUP)
        least = self.targets.least_requests
        while group > _SMALLEST_GROUP and self.load.requests(group / replicas, factor, least) > _MOST_REQUESTS:
            group -= 1
        return group
