"""`fuseline bench serve`: throughput and latency of a running server, its answers checked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.latency_histogram import encoded, histogram_of, percentiles_ms
from fuseline.benchmarks.harness.timing import BURN_IN_S
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.load.load import LoadResult
from fuseline.benchmarks.load.open_loop import OpenLoad, run_open_loop
from fuseline.benchmarks.load.protocols import Classify
from fuseline.benchmarks.load.server_watch import ServerWatch
from fuseline.benchmarks.load.target import Target
from fuseline.benchmarks.serving.figures import OpenFigures, ServingFigures
from fuseline.serve.errors import VerificationError


def measure_serving(
    target: Target,
    *,
    concurrency: int,
    seconds: float,
    burn_in_s: float = BURN_IN_S,
    images_per_request: int = 1,
    processes: int = 1,
    streams: int = 1,
    deadline_s: float | None = None,
) -> ServingFigures:
    """One closed loop against `target`; its answers are checked after the clock has stopped.

    Args:
        target: as `connect` gave it.
        concurrency: requests under way.
        seconds: how long is measured.
        burn_in_s: how long the load lasts before that, at least.
        images_per_request: images of each request.
        processes: of the load generator.
        streams: of each process, where `target.protocol` streams.
        deadline_s: within which an answer counts as goodput.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: too few answers came to measure anything.
    """
    load = ClosedLoad(
        address=target.address,
        requests=target.requests(images_per_request, with_logits=False),
        burn_in_requests=target.requests(images_per_request, with_logits=True),
        concurrency=concurrency,
        seconds=seconds,
        burn_in_s=burn_in_s,
        method=target.protocol.method,
        processes=processes,
        streams=streams if target.protocol.is_stream else 0,
    )
    watch = ServerWatch(target)
    result = run_closed_loop(load, watch)
    _check_answers(target, result, images_per_request)
    histogram = histogram_of(result.latency_s)
    return ServingFigures(
        concurrency=concurrency,
        images_per_request=images_per_request,
        requests_per_s=result.requests_per_s,
        images_per_s=result.requests_per_s * images_per_request,
        latency_ms=percentiles_ms(histogram),
        requests=len(result.latency_s),
        window_s=result.window_s,
        server_cpu_ms_per_request=_cpu_ms_per_request(watch, result.requests_per_s),
        generator_cpu_share=result.generator_cpu_share,
        errors=dict(result.errors),
        goodput_per_s=_goodput(result.latency_s, deadline_s, result.window_s),
        batches=watch.batches(),
        latency_histogram=encoded(histogram),
    )


def measure_open(
    target: Target,
    *,
    rate_per_s: float,
    seconds: float,
    burn_in_s: float = BURN_IN_S,
    images_per_request: int = 1,
    processes: int = 1,
    streams: int = 1,
    deadline_s: float | None = None,
    send_deadline: bool = False,
    seed: int = 0,
) -> OpenFigures:
    """One open loop against `target`: `rate_per_s` requests are due each second, whatever the server does.

    Args as those of `measure_serving`, and:
        send_deadline: give the server `deadline_s` too, so that it may refuse: as the deadline of each call, on a
            ClassifyStream as the `timeout_ms` of each request.
        seed: of the arrivals.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: nothing was answered.
        InputError: no request would be due.
    """
    asked = target
    protocol = target.protocol
    if send_deadline and deadline_s is not None and isinstance(protocol, Classify) and protocol.is_stream:
        asked = replace(target, protocol=replace(protocol, timeout_ms=max(1, round(1000 * deadline_s))))
    load = OpenLoad(
        address=target.address,
        requests=asked.requests(images_per_request, with_logits=False),
        burn_in_requests=asked.requests(images_per_request, with_logits=True),
        rate_per_s=rate_per_s,
        seconds=seconds,
        seed=seed,
        burn_in_s=burn_in_s,
        method=target.protocol.method,
        processes=processes,
        streams=streams if target.protocol.is_stream else 0,
        timeout_s=deadline_s if send_deadline else None,
    )
    watch = ServerWatch(target)
    result = run_open_loop(load, watch)
    _check_answers(target, result, images_per_request)
    histogram = histogram_of(result.latency_s)
    answered_per_s = result.answered / result.window_s
    return OpenFigures(
        rate_per_s=rate_per_s,
        images_per_request=images_per_request,
        requests_per_s=answered_per_s,
        images_per_s=answered_per_s * images_per_request,
        latency_ms=percentiles_ms(histogram),
        requests=result.due,
        window_s=result.window_s,
        send_lag_ms=percentiles_ms(histogram_of(result.send_lag_s)),
        server_cpu_ms_per_request=_cpu_ms_per_request(watch, answered_per_s),
        generator_cpu_share=result.generator_cpu_share,
        errors=dict(result.errors),
        goodput_per_s=_goodput(result.answered_latency_s, deadline_s, result.window_s),
        batches=watch.batches(),
        latency_histogram=encoded(histogram),
    )


def sweep(
    target: Target, concurrencies: Sequence[int], say: Callable[[str], None] = lambda _: None, **settings: Any
) -> tuple[ServingFigures, ...]:
    """`measure_serving` at each of `concurrencies`."""
    figures = []
    for concurrency in concurrencies:
        say(f"concurrency {concurrency}")
        figures.append(measure_serving(target, concurrency=concurrency, **settings))
    return tuple(figures)


def sweep_rates(
    target: Target, rates_per_s: Sequence[float], say: Callable[[str], None] = lambda _: None, **settings: Any
) -> tuple[OpenFigures, ...]:
    """`measure_open` at each of `rates_per_s`."""
    figures = []
    for rate in rates_per_s:
        say(f"{rate:g} requests/s")
        figures.append(measure_open(target, rate_per_s=rate, **settings))
    return tuple(figures)


def _check_answers(target: Target, result: LoadResult, images_per_request: int) -> None:
    if not result.answers:
        raise VerificationError(f"{target.address} answered nothing that could be checked")
    for request, answer in result.answers:
        expected = target.expected[target.pictures_of(request, images_per_request)]
        target.protocol.check(f"the server at {target.address}", target.precision, answer, expected)


def _goodput(answered_latency_s: NDArray[np.float64], deadline_s: float | None, window_s: float) -> float | None:
    return None if deadline_s is None else int((answered_latency_s <= deadline_s).sum()) / window_s


def _cpu_ms_per_request(watch: ServerWatch, requests_per_s: float) -> float | None:
    cores = watch.cpu_cores()
    return None if cores is None else 1e3 * cores / requests_per_s
