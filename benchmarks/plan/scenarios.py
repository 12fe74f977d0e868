"""What becomes of a planned fleet as load grows, in a burst, and when a replica is lost."""

import math
from dataclasses import dataclass, replace

from fuseline.benchmarks.plan.arrivals import Burst, Load, Poisson
from fuseline.benchmarks.plan.fleet import Figures, Fleet
from fuseline.benchmarks.plan.simulation import ServingOptions

PARTS_OF_CAPACITY = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2)
WHAT_IF_BURST = 2.0, 2.0
"""Times and seconds of the burst that is shown where none was asked for."""


@dataclass(frozen=True, slots=True)
class AtLoad:
    """One row of the table of loads."""

    part_of_capacity: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class InBurst:
    """What becomes of the requests of a burst."""

    times: float
    seconds: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class Lost:
    """What becomes of the requests after one replica is gone, and stays gone."""

    replicas: int
    """Replicas before that."""
    figures: Figures
    is_kept: bool
    """Whether the targets are met, as far as one simulation tells."""


def at_load(fleet: Fleet, replicas: int, options: ServingOptions, part: float) -> AtLoad:
    """Simulate Poisson arrivals of such a `part` of what the replicas can compute."""
    steady = replace(fleet, load=_steady(fleet.load))
    usual = steady.load.pictures_per_s / (replicas * fleet.capacity(options))
    return AtLoad(part, steady.figures(replicas, options, factor=part / usual))


def in_burst(fleet: Fleet, replicas: int, options: ServingOptions, times: float, seconds: float) -> InBurst:
    """Simulate Poisson arrivals that become `times` as dense for `seconds`."""
    rows = _steady(fleet.load).rows
    burst = Burst(fleet.load.pictures_per_s / rows, rows, times, seconds)
    return InBurst(times, seconds, replace(fleet, load=burst).figures(replicas, options))


def without_one(fleet: Fleet, replicas: int, options: ServingOptions) -> Lost | None:
    """Simulate the loss of one of the replicas under Poisson arrivals; None where it is the only one."""
    if replicas == 1:
        return None
    steady = replace(fleet, load=_steady(fleet.load))
    figures = steady.figures(replicas, options, loses=True)
    kept = all(
        (value := figures.latency_ms[name]) is not None and value <= limit
        for name, limit in fleet.targets.limits_ms.items()
    )
    return Lost(replicas, figures, kept)


def fitting_queues(fleet: Fleet, replicas: int, options: ServingOptions) -> tuple[ServingOptions, ...]:
    """Return `options` with queues in which nobody waits for longer than an answer is good, the best first.

    Only those by which more is answered in time at 1.2 times capacity: as long as the load is within it, the queue is
    never full.
    """
    default, steady = ServingOptions(), replace(fleet, load=_steady(fleet.load))
    factor = 1.2 * replicas * fleet.capacity(options) / steady.load.pictures_per_s
    longest = max(fleet.targets.limits_ms.values())
    batch_ms = 1000 * max(
        bucket.median for bucket in fleet.profile.buckets if bucket.rows <= (options.max_batch or math.inf)
    )
    best, best_share = [], steady.figures(replicas, options, factor=factor).good_share
    for part in (0.9, 0.7, 0.5):
        wait_ms = float(f"{part * max(longest - batch_ms, 0.2 * longest):.2g}")
        if wait_ms >= default.max_queue_ms:
            continue
        rows = 2 ** math.ceil(math.log2(max(fleet.load.rows, fleet.most_pictures_per_s * wait_ms / 1000)))
        tried = replace(options, max_queue_ms=wait_ms, max_queue_rows=max(default.max_queue_rows, rows))
        share = steady.figures(replicas, tried, factor=factor).good_share
        if share > 1.02 * best_share:
            best.insert(0, tried)
            best_share = share
    return tuple(best)


def _steady(load: Load) -> Poisson:
    rows = max(1, round(load.pictures_per_s / load.rate_per_s))
    return Poisson(load.pictures_per_s / rows, rows)
