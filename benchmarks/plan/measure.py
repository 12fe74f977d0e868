"""Measures a profile: the package is served by a real server, under a real load, and its batches are written down."""

import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.cpu_time import peak_memory_mb
from fuseline.benchmarks.harness.machine import machine_facts
from fuseline.benchmarks.plan.batch_record import BatchingFacts, BatchRecord, CallSeconds
from fuseline.benchmarks.plan.closed_loop import closed_loop_rate
from fuseline.benchmarks.plan.measured_servers import BURN_IN_S, MeasuredServers, Stretch, measured_servers
from fuseline.benchmarks.plan.profile import MOST_SAMPLES, BucketSeconds, FrontEnd, Profile
from fuseline.benchmarks.plan.virtual_lanes import ALONE_WAITS
from fuseline.benchmarks.plan.virtual_server import ServingOptions
from fuseline.serve.errors import BackendError

FULL_CALLERS = 32
"""Callers that keep all lanes busy."""

MODERATE_LOAD = 0.6
"""Share of the capacity at which batches of all sizes come."""

LARGE_IMAGES = 4
"""Pictures of a request by which what its size costs is told from what each request costs."""

_SINGLE_SHARE, _FULL_SHARE, _MODERATE_SHARE = 0.15, 0.45, 0.4
_LARGE_SHARE = 0.2
_LEAST_SAMPLES = 30
"""Number of batches under load from which on a bucket's bare calls don't count."""
_ABOUT_ONE = 0.03
_COMPUTING_CORES = 0.1
_LEAST_BUSY = 0.3
_HANDED_OUT_S = 0.002
_CALIBRATIONS = 2
_LARGEST_FACTOR = 1.5


def measure_profile(
    package: Path, *, seconds: float, flags: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> Profile:
    """Serve `package` with `flags`, of `fuseline serve`, load it for `seconds` in all, and return its profile.

    Raises:
        PackageError: `package` is none.
        BackendError: the server doesn't start, or answers nothing.
    """
    say("starting the server")
    with measured_servers(package, *flags) as servers:
        measure_stretches(servers, (1 - _LARGE_SHARE) * seconds, say)
        say(f"{LARGE_IMAGES} pictures a request")
        servers.closed(FULL_CALLERS // LARGE_IMAGES, _LARGE_SHARE * seconds, LARGE_IMAGES)
        return profile_of(servers, servers.stretches)


def measure_stretches(servers: MeasuredServers, seconds: float, say: Callable[[str], None] = lambda _: None) -> float:
    """Load `servers` in the ways that a profile needs for `seconds` in all; return the requests/s of all lanes."""
    say("one caller")
    servers.closed(1, _SINGLE_SHARE * seconds)
    say(f"{FULL_CALLERS} callers")
    full = servers.closed(FULL_CALLERS, _FULL_SHARE * seconds)
    say(f"{MODERATE_LOAD:.0%} of what those got")
    servers.open(MODERATE_LOAD * full.requests_per_s, _MODERATE_SHARE * seconds, seed=len(servers.stretches))
    return full.requests_per_s


def calibrated(profile: Profile, requests_per_s: float, full: FrontEnd, replicas: int = 1) -> Profile:
    """Return `profile` with the lanes' seconds such that `replicas` answer `FULL_CALLERS` as many as were measured.

    What requests take of the cores is known only roughly, and near capacity a few percent of the time that a batch
    takes are a multiple of the time that requests wait. `full` is what they cost such callers.
    """
    options = ServingOptions(clients_beside=True)
    for _ in range(_CALIBRATIONS):
        closed = profile.model_copy(update={"front_end": full})
        factor = closed_loop_rate(closed, FULL_CALLERS, replicas=replicas, options=options) / requests_per_s
        factor = min(_LARGEST_FACTOR, max(1 / _LARGEST_FACTOR, factor))
        buckets = tuple(
            bucket.model_copy(update={"seconds": tuple(round(factor * seconds, 7) for seconds in bucket.seconds)})
            for bucket in profile.buckets
        )
        profile = profile.model_copy(update={"buckets": buckets})
    return profile


def profile_of(servers: MeasuredServers, stretches: Sequence[Stretch]) -> Profile:
    """Return the profile of one of `servers` that `stretches` of load on them come to.

    Raises:
        BackendError: too little was answered, or the servers aren't alike.
    """
    facts = [record.facts() for record in servers.records]
    if len({each.lanes for each in facts}) > 1:
        lanes = ", ".join(f"{each.lanes}" for each in facts)
        raise BackendError(f"the servers chose {lanes} lanes, so they are not alike; name a number with --lanes")
    model, machine = servers.target.model, machine_facts()
    front_end = _front_end(servers, stretches)
    on_cpu = not facts[0].lanes_share_device
    # What each request took of the cores while batches were computed on them.
    of_size = front_end.cpu_seconds_per_mb * front_end.request_mb
    taken = front_end.cpu_seconds + of_size + front_end.client_cpu_seconds if on_cpu else 0.0
    ordinary = [stretch for stretch in stretches if stretch.images == 1]
    samples = [_undisturbed(record, stretch, facts[0], taken) for stretch in stretches for record in servers.records]
    scatter = _scatter(samples)
    peaks_mb = [peak_memory_mb(process.pid) or 0.0 for process in servers.processes]
    ready_s = [process.ready_s - each.measuring_seconds for process, each in zip(servers.processes, facts, strict=True)]
    profile = Profile(
        model=model.name,
        machine=f"{machine['gpu'] or machine['cpu']}, {servers.cores} cores",
        backend=model.backend,
        precision=model.precision,
        device="CPU" if on_cpu else "GPU",
        measured=datetime.now(UTC).date(),
        lanes=facts[0].lanes,
        cores=servers.cores,
        buckets=_buckets([each.buckets for each in facts], samples, scatter, is_alone=False),
        alone=_buckets([each.alone for each in facts], samples, scatter, is_alone=True),
        unsaturated_rows=facts[0].unsaturated_rows,
        inline_below_ms=facts[0].inline_below_ms,
        front_end=front_end,
        memory_bytes=round(max(peaks_mb) * 1e6),
        start_seconds=round(max(ready_s), 3),
    )
    full = [stretch for stretch in ordinary if stretch.concurrency == FULL_CALLERS]
    if not full:
        return profile
    rate = statistics.median(stretch.requests_per_s for stretch in full)
    return calibrated(profile, rate, _front_end(servers, stretches, full), len(servers.processes))


def _front_end(
    servers: MeasuredServers, stretches: Sequence[Stretch], costing: Sequence[Stretch] | None = None
) -> FrontEnd:
    """Return what a request costs in the stretches `costing`; None: halfway between a moderate load and a full one.

    At full load requests and answers are handled several at a time, which costs each of them less. Arrivals that don't
    wait for answers, at loads near capacity, are between the two.
    """
    loops = {record.loop_thread for record in servers.records}
    computing = {
        thread
        for stretch in stretches
        for thread, seconds in stretch.thread_seconds.items()
        if seconds > _COMPUTING_CORES * stretch.window_s and thread not in loops
    }
    moderate = [stretch for stretch in stretches if stretch.concurrency is None and stretch.requests]
    single = [stretch for stretch in stretches if stretch.concurrency == 1 and len(stretch.latency_s)]
    if not moderate or not single:
        raise BackendError("too little was answered to measure a profile; measure longer")

    def loop_seconds(stretch: Stretch) -> float:
        return sum(stretch.thread_seconds.get(thread, 0.0) for thread in loops)

    def cpu_seconds(stretch: Stretch) -> float:
        return sum(seconds for thread, seconds in stretch.thread_seconds.items() if thread not in computing)

    full = [s for s in stretches if s.concurrency == FULL_CALLERS and s.images == 1 and s.requests]
    kinds = [kind for kind in (moderate, full) if kind] if costing is None else [costing]

    def per_request(cost: Callable[[Stretch], float]) -> float:
        return statistics.fmean(statistics.median(cost(each) / each.requests for each in kind) for kind in kinds)

    request_mb = servers.request_bytes / 1e6
    whole_loop, whole_cpu = per_request(loop_seconds), per_request(cpu_seconds)
    loop_per_mb = _per_mb(loop_seconds, stretches, request_mb, whole_loop)
    cpu_per_mb = max(loop_per_mb, _per_mb(cpu_seconds, stretches, request_mb, whole_cpu))
    transport = statistics.median(_transport_seconds(servers, stretch, whole_loop) for stretch in single)
    # Not of a closed loop: there bursts of answers make bursts of requests, which wait for the load generator.
    ways = [
        (_way_seconds(servers, stretch) - whole_loop - transport) / max(_LEAST_BUSY, _busy_share(servers, stretch))
        for stretch in moderate
    ]
    return FrontEnd(
        loop_seconds=round(whole_loop - loop_per_mb * request_mb, 7),
        loop_seconds_per_mb=round(loop_per_mb, 7),
        cpu_seconds=round(max(0.0, whole_cpu - cpu_per_mb * request_mb), 7),
        cpu_seconds_per_mb=round(cpu_per_mb, 7),
        client_cpu_seconds=round(per_request(lambda stretch: stretch.client_cpu_s), 7),
        request_mb=request_mb,
        transport_seconds=round(transport, 7),
        busy_transport_seconds=round(max(0.0, statistics.median(ways)), 7),
    )


def _per_mb(cost: Callable[[Stretch], float], stretches: Sequence[Stretch], request_mb: float, most_s: float) -> float:
    """Return what a MB of a request costs, by large ones beside small ones at full load; at most all of `most_s`."""
    full = [s for s in stretches if s.concurrency not in {None, 1} and s.requests]
    small = [cost(s) / s.requests for s in full if s.images == 1]
    large = [(cost(s) / s.requests, s.images) for s in full if s.images > 1]
    if not small or not large:
        return 0.0
    slopes = [(seconds - statistics.median(small)) / (images - 1) for seconds, images in large]
    return min(max(0.0, statistics.median(slopes)), most_s) / request_mb


def _transport_seconds(servers: MeasuredServers, stretch: Stretch, loop_seconds: float) -> float:
    batches = np.concatenate([record.batches(stretch.start, stretch.end) for record in servers.records])
    computing = float(np.median(batches["ended"] - batches["started"]))
    return max(0.0, float(np.median(stretch.latency_s)) - computing - loop_seconds)


def _way_seconds(servers: MeasuredServers, stretch: Stretch) -> float:
    """Return the mean seconds from sending a request to its submission, and from its batch's end to its answer."""
    inside = []
    for record in servers.records:
        batches, requests = (of(stretch.start, stretch.end) for of in (record.batches, record.requests))
        if (rows := batches["rows"].sum()) == requests["rows"].sum() > 0:
            inside.append(((batches["ended"] * batches["rows"]).sum() - requests["started"].sum()) / rows)
    return float(np.mean(stretch.latency_s) - np.mean(inside)) if inside else 0.0


def _busy_share(servers: MeasuredServers, stretch: Stretch) -> float:
    """Return the share of a stretch's time for which all cores of a server computed, on average over the servers."""
    busy_s = 0.0
    for record in servers.records:
        lanes = record.facts().lanes
        batches = np.sort(record.batches(stretch.start, stretch.end), order="started")
        seconds = batches["ended"] - batches["started"]
        busy_s += float((seconds * np.where(batches["lane"] < 0, 1.0, overlaps(batches, lanes) / lanes)).sum())
    lasted = stretch.window_s + BURN_IN_S
    return busy_s / lasted / len(servers.records)


def _undisturbed(
    record: BatchRecord, stretch: Stretch, facts: BatchingFacts, taken: float
) -> dict[tuple[bool, int], NDArray[np.float64]]:
    """Return the seconds of a server's batches in a stretch, by whether it had all cores and its bucket.

    What the requests took of the cores that came or were answered meanwhile, `taken` seconds each, is taken off.
    """
    batches = np.sort(record.batches(stretch.start, stretch.end), order="started")
    came_at = np.sort(record.requests(stretch.start, stretch.end)["started"])
    came = np.searchsorted(came_at, batches["ended"]) - np.searchsorted(came_at, batches["started"])
    by_end = np.sort(batches, order="ended")
    answered = np.concatenate([[0], np.cumsum(by_end["rows"])])
    done = answered[np.searchsorted(by_end["ended"], batches["ended"])]
    # Answers to the batch before are handed out while the next one is computed already.
    done -= answered[np.searchsorted(by_end["ended"], batches["started"] - _HANDED_OUT_S)]
    seconds = batches["ended"] - batches["started"]
    alone = batches["lane"] < 0
    share = np.where(alone, ALONE_WAITS, overlaps(batches, facts.lanes) / facts.lanes)
    undisturbed = np.maximum(seconds / 4, seconds - share * (came + done) / 2 * taken)
    keys = [(True, calls.rows) for calls in facts.alone] + [(False, calls.rows) for calls in facts.buckets]
    return {(is_alone, rows): undisturbed[(alone == is_alone) & (batches["bucket"] == rows)] for is_alone, rows in keys}


def overlaps(batches: NDArray[Any], lanes: int) -> NDArray[np.float64]:
    """Return for each of `batches`, by ascending start, for which share of its time all `lanes` were at work.

    Shape (batches,). With more than two lanes it is how many of the others were, on average.
    """
    if lanes == 1:
        return np.ones(len(batches))
    starts, ends = batches["started"], batches["ended"]
    found = np.zeros(len(batches))
    reach = 3 * lanes
    for offset in range(1, reach + 1):
        common = np.minimum(ends[offset:], ends[:-offset]) - np.maximum(starts[offset:], starts[:-offset])
        common = np.maximum(0.0, common)
        found[offset:] += common
        found[:-offset] += common
    return np.minimum(1.0, found / np.maximum(ends - starts, 1e-9) / (lanes - 1))


def _buckets(
    facts: Sequence[Sequence[CallSeconds]],
    samples: Sequence[dict[tuple[bool, int], NDArray[np.float64]]],
    scatter: NDArray[np.float64],
    *,
    is_alone: bool,
) -> tuple[BucketSeconds, ...]:
    """Return the times of all buckets; `facts` are each server's bare calls of them, `scatter` that of `_scatter`."""
    return tuple(
        _bucket(calls, samples, scatter, _idle_ratio(facts), is_alone=is_alone) for calls in zip(*facts, strict=False)
    )


def _bucket(
    calls: Sequence[CallSeconds],
    samples: Sequence[dict[tuple[bool, int], NDArray[np.float64]]],
    scatter: NDArray[np.float64],
    idle_ratio: float,
    *,
    is_alone: bool,
) -> BucketSeconds:
    """Return the times of one bucket, of which each server made `calls`."""
    rows = calls[0].rows
    seconds = np.concatenate([by_bucket[is_alone, rows] for by_bucket in samples])
    if len(seconds) < _LEAST_SAMPLES:
        # A few calls tell how long such a batch takes, not how much longer now and then: one slow call among five would
        # be every fifth batch.
        usual = float(np.median(np.concatenate([seconds, *(each.together for each in calls)])))
        seconds = usual * scatter
    return BucketSeconds(rows=rows, seconds=tuple(np.round(seconds[-MOST_SAMPLES:], 7).tolist()), idle_ratio=idle_ratio)


def _scatter(samples: Sequence[dict[tuple[bool, int], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the ratios of batches' seconds to their buckets' medians, of buckets with enough of them; else 1."""
    ratios = [np.ones(1)]
    for key in samples[0]:
        seconds = np.concatenate([by_bucket[key] for by_bucket in samples])
        if len(seconds) >= _LEAST_SAMPLES:
            ratios.append(seconds / np.median(seconds))
    return np.concatenate(ratios)[-MOST_SAMPLES:]


def _idle_ratio(facts: Sequence[Sequence[CallSeconds]]) -> float:
    """Return the multiple of a batch's time that it takes while no other lane works: the median of all buckets."""
    ratios = [
        float(np.median([seconds for each in calls for seconds in each.single]))
        / float(np.median([seconds for each in calls for seconds in each.together]))
        for calls in zip(*facts, strict=False)
        if any(each.single for each in calls)
    ]
    found = statistics.median(ratios) if ratios else 1.0
    return round(min(2.0, found), 4) if abs(1 - found) > _ABOUT_ONE else 1.0
