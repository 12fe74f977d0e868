"""Holds what the simulation predicts against what real servers do, on the same arrivals.

A round goes through the loads one by one. Before each load and after the last one the profile is measured anew, and a
load is predicted from the two profiles beside it: what slows the machine for a while slows all of them. Ratios are
taken load by load, and the median of the rounds counts.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.benchmarks.load.open_loop import poisson_arrivals
from fuseline.benchmarks.plan.closed_loop import closed_loop_rate
from fuseline.benchmarks.plan.measure import FULL_CALLERS, measure_stretches, profile_of
from fuseline.benchmarks.plan.measured_servers import MeasuredServers, Stretch, measured_servers, open_arrivals
from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.side_by_side import side_by_side
from fuseline.benchmarks.plan.simulation import Arrivals, ServingOptions, simulate
from fuseline.serve.errors import BackendError
from fuseline.serve.process.cpu import usable_cpus

LOADS = (0.5, 0.8, 0.95)
"""Shares of the capacity that are offered."""

REPLICAS = (1, 2)

BAR = 0.2
"""Largest share by which a predicted percentile may miss the measured one."""

PERCENTILES = (50, 99)

BUSY_CORES = 0.05
"""Share of the cores that other programs may have while a load is measured; with more, it doesn't count."""

PROFILE_S = 14.0
"""Seconds of load for one profile: at 0.95 of capacity an error of 1 % in the capacity is one of 20 % in the wait."""

LEAST_REQUESTS = 1500
"""Number of requests of a load, from which a 99th percentile can be read."""

MOST_SECONDS = 20.0
"""Longest time of simulating `MANY_REQUESTS`, on all cores."""

MANY_REQUESTS = 1_000_000

_SIMULATIONS = 8
_TIMED_LOAD = 0.8


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load, measured and predicted."""

    replicas: int
    load: float
    """Share of the capacity."""
    rate_per_s: float
    requests: int
    measured_ms: tuple[float, ...]
    """Of `PERCENTILES`."""
    predicted_ms: tuple[float, ...]
    measured_errors: int
    """Number of requests that were refused, or had no answer."""
    predicted_errors: float
    """Number of such requests, on average over the simulations."""
    measured_batch_rows: float
    """Rows of a batch, on average."""
    predicted_batch_rows: float
    others_cores: float
    """Number of cores that other programs had meanwhile, or if that is more, beside it for the profiles."""
    generator_cpu_share: float
    """CPU seconds of the load generator in a second."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Predicted to measured, of `PERCENTILES`."""
        return tuple(p / m for p, m in zip(self.predicted_ms, self.measured_ms, strict=True))


@dataclass(frozen=True, slots=True)
class PointVerdict:
    """How well one percentile of one load is predicted."""

    replicas: int
    load: float
    percentile: int
    ratio: Spread
    measured_ms: Spread
    predicted_ms: Spread

    @property
    def passed(self) -> bool:
        """Whether the median of the ratios is within the bar."""
        return abs(self.ratio.median - 1) <= BAR


@dataclass(slots=True)
class PlanCheck:
    """What a run found."""

    model: str
    cores: int
    rounds: list[list[Comparison]]
    profiles: dict[int, Profile]
    """The last profile for each number of replicas."""
    simulating_s: float = 0.0
    """Seconds of simulating `MANY_REQUESTS` to one server at 0.8 of capacity, on all cores."""

    @property
    def quiet(self) -> list[list[Comparison]]:
        """Comparisons by round, without those during which other programs had much of the cores."""
        return [[each for each in found if each.others_cores <= BUSY_CORES * self.cores] for found in self.rounds]

    @property
    def verdicts(self) -> list[PointVerdict]:
        """A verdict for each percentile of each load that was measured undisturbed at least once."""
        found = []
        for replicas in sorted(self.profiles):
            for load in LOADS:
                points = [p for each in self.quiet for p in each if (p.replicas, p.load) == (replicas, load)]
                for place, percentile in enumerate(PERCENTILES if points else ()):
                    ratio = spread_of([point.ratios[place] for point in points])
                    measured = spread_of([point.measured_ms[place] for point in points])
                    predicted = spread_of([point.predicted_ms[place] for point in points])
                    found.append(PointVerdict(replicas, load, percentile, ratio, measured, predicted))
        return found

    @property
    def unjudged(self) -> list[tuple[int, float]]:
        """(replicas, load) of those that other programs disturbed each time."""
        judged = {(verdict.replicas, verdict.load) for verdict in self.verdicts}
        return [(n, load) for n in sorted(self.profiles) for load in LOADS if (n, load) not in judged]

    @property
    def passed(self) -> bool:
        """Whether all were judged, and are within the bar, and simulating took no longer than it may."""
        within = all(verdict.passed for verdict in self.verdicts)
        return not self.unjudged and within and self.simulating_s <= MOST_SECONDS


def run_check(
    package: Path,
    *,
    minutes: float,
    replicas: Sequence[int] = REPLICAS,
    flags: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> PlanCheck:
    """Compare round by round for about so many `minutes`.

    Each number of `replicas` has servers of its own, with the `flags` of `fuseline serve`, that share out the cores.

    Raises:
        PackageError: `package` is none.
        BackendError: a server doesn't start, or answers nothing.
        VerificationError: an answer is wrong.
    """
    ends = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        settings = {}
        for count in replicas:
            say(f"starting {count} server{'s' if count > 1 else ''}")
            settings[count] = stack.enter_context(measured_servers(package, *flags, count=count))
        first = settings[replicas[0]]
        run = PlanCheck(first.target.model.name, sum(first.cores for _ in first.processes), [], {})
        longest = 0.0
        while not run.rounds or time.monotonic() + longest < ends:
            began = time.monotonic()
            number = len(run.rounds)
            found: list[Comparison] = []
            # Every second round goes backwards.
            for count in list(replicas)[:: 1 if number % 2 == 0 else -1]:
                found += _round(run, settings[count], number, say)
            run.rounds.append(found)
            longest = max(longest, time.monotonic() - began)
    say(f"simulating {MANY_REQUESTS:,} requests")
    run.simulating_s = simulating_seconds(run.profiles[replicas[0]], MANY_REQUESTS)
    return run


def simulating_seconds(profile: Profile, requests: int) -> float:
    """Return the seconds that simulating takes so many requests of one row to one server, at 0.8 of its capacity.

    They are as many stretches as there are cores, one on each, as `fuseline plan` simulates what it shows.
    """
    options = ServingOptions(clients_beside=True)
    rate = _TIMED_LOAD * closed_loop_rate(profile, FULL_CALLERS, options=options)
    stretches = usable_cpus()
    calls = []
    for seed in range(stretches):
        times = poisson_arrivals(rate, requests / stretches / rate, seed=seed)
        arrivals = Arrivals(times, np.ones(len(times), np.int32))
        calls.append(partial(simulate, profile, arrivals, options=options, seed=seed))
    began = time.perf_counter()
    side_by_side(calls)
    return time.perf_counter() - began


def _round(run: PlanCheck, servers: MeasuredServers, number: int, say: Callable[[str], None]) -> list[Comparison]:
    count = len(servers.processes)
    name = f"round {number + 1}, {count} server{'s' if count > 1 else ''}"
    found: list[Comparison] = []

    def profiled() -> list[Stretch]:
        before = len(servers.stretches)
        measure_stretches(servers, PROFILE_S, lambda what: say(f"{name}: the profile, {what}"))
        return servers.stretches[before:]

    before = profiled()
    capacities = [_capacity(before)]
    for load in LOADS[:: 1 if number % 2 == 0 else -1]:
        rate = load * float(np.median(capacities))
        seconds = LEAST_REQUESTS / rate + 1
        seed = 1000 * number + 10 * round(100 * load)
        say(f"{name}: {load:.0%} of capacity, {rate:.1f} requests/s for {seconds:.0f} s")
        measured = servers.open(rate, seconds, seed)
        after = profiled()
        capacities.append(_capacity(after))
        profile = run.profiles[count] = profile_of(servers, [*before, *after])
        found.append(_compared(servers, profile, measured, load, seconds, seed, [*before, *after]))
        before = after
    return found


def _capacity(stretches: Sequence[Stretch]) -> float:
    return max(stretch.requests_per_s for stretch in stretches if stretch.concurrency is not None)


def _compared(
    servers: MeasuredServers,
    profile: Profile,
    measured: Stretch,
    load: float,
    seconds: float,
    seed: int,
    beside: Sequence[Stretch],
) -> Comparison:
    if not len(measured.latency_s):
        raise BackendError("nothing was answered")
    count = len(servers.processes)
    times, burn_in = open_arrivals(measured.requests_per_s, seconds, seed)
    arrivals = Arrivals(times, np.ones(len(times), np.int32))
    outcomes = [
        simulate(profile, arrivals, replicas=count, options=ServingOptions(clients_beside=True), seed=number)
        for number in range(_SIMULATIONS)
    ]
    latencies = [outcome.latency_s[burn_in:] for outcome in outcomes]
    predicted = np.mean([np.nanpercentile(each, PERCENTILES) for each in latencies], axis=0)
    batches = np.concatenate([record.batches(measured.start, measured.end) for record in servers.records])
    return Comparison(
        replicas=count,
        load=load,
        rate_per_s=measured.requests_per_s,
        requests=measured.requests,
        measured_ms=tuple((1000 * np.percentile(measured.latency_s, PERCENTILES)).tolist()),
        predicted_ms=tuple((1000 * predicted).tolist()),
        measured_errors=measured.errors,
        predicted_errors=float(np.mean([np.isnan(each).sum() for each in latencies])),
        measured_batch_rows=float(batches["rows"].mean()),
        predicted_batch_rows=float(
            np.mean([outcome.batch_rows @ outcome.batches / outcome.batches.sum() for outcome in outcomes])
        ),
        others_cores=max(stretch.others_cores for stretch in (measured, *beside)),
        generator_cpu_share=measured.client_cpu_s / measured.window_s,
    )
