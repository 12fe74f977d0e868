"""The load generator's closed loop: so many requests under way, from processes of its own.

Each of `concurrency` callers sends its next request as soon as it has the answer to the one before. Requests are
serialised beforehand and answers are kept as bytes, so that the generator spends as little as Python's gRPC allows.
`fuseline.benchmarks.load.open_loop` is the one that sends whether or not there were answers.

A batching server answers in bursts. To count whole bursts only, both ends of the window are moved back to the end of a
burst: with a fixed window of 5.5 bursts, five or six would count by chance.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.load.calls import CallError
from fuseline.benchmarks.load.generators import Cue, Window, drive, shares_of
from fuseline.benchmarks.load.load import KeptAnswers, Load, LoadResult, counted
from fuseline.serve.errors import BackendError

_PAUSE_AFTER_ERROR_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoad(Load):
    """What is sent, how fast and how long."""

    concurrency: int
    """Callers of all processes together; where it streams, each process shares its own out over its streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedResult(LoadResult):
    """What came back in the window. A latency is from just before its request was sent to its answer."""

    requests_per_s: float
    """Answered without an error."""


def run_closed_loop(load: ClosedLoad, at_edge: Callable[[], None] = lambda: None) -> ClosedResult:
    """Drive `load` and return what was measured; `at_edge` is called at the start and at the end of the window.

    The burn-in lasts `burn_in_s` and until each caller has had two answers on average.

    Raises:
        BackendError: fewer than two answers came in the window, or the server stopped answering.
    """
    loads = [dataclasses.replace(load, concurrency=share) for share in shares_of(load.concurrency, load.processes)]
    parts, window = drive(_drive, loads, seconds=load.seconds, ready_s=load.burn_in_s, at_edge=at_edge)
    return _merge(parts, window, load.concurrency)


def answers_in_window(
    finished_s: NDArray[np.float64], window: Window, concurrency: int
) -> tuple[NDArray[np.bool_], float] | None:
    """Which answers count, and the seconds they took; None if no span between two answers lies in the window.

    `finished_s` are the times of the answers in any order. Each end of the window moves back to the answer before the
    longest pause among the last `concurrency` answers; no burst is longer. Those after the first end, up to the
    second, are counted over the time between the two.
    """
    times = np.sort(finished_s)
    first, last = (_end_of_burst(times, edge, concurrency) for edge in window)
    if first is None or last is None or last <= first:
        return None
    return (finished_s > first) & (finished_s <= last), last - first


def _end_of_burst(times: NDArray[np.float64], edge: float, longest: int) -> float | None:
    before = int(np.searchsorted(times, edge, side="right"))
    if not before:
        return None
    start = max(0, before - longest)
    pauses = np.diff(times[start : before + 1], append=np.inf if before == len(times) else [])
    return float(times[start + int(pauses.argmax())])


@dataclass(slots=True)
class _Part:
    """What one process saw."""

    finished_s: list[float]
    latency_s: list[float]
    errors: Counter[str]
    answers: list[tuple[int, bytes]]
    cpu_s: float


def _merge(parts: Sequence[_Part], window: Window, concurrency: int) -> ClosedResult:
    errors: Counter[str] = sum((part.errors for part in parts), Counter())
    finished = np.concatenate([part.finished_s for part in parts])
    found = answers_in_window(finished, window, concurrency)
    if found is None:
        seconds = window[1] - window[0]
        raise BackendError(
            f"no two answers came apart within {seconds:g} s ({counted(errors)}); measure longer with --seconds"
        )
    chosen, span = found
    latency = np.concatenate([part.latency_s for part in parts])[chosen]
    return ClosedResult(
        requests_per_s=int(chosen.sum()) / span,
        latency_s=latency,
        errors=errors,
        answers=tuple(answer for part in parts for answer in part.answers),
        generator_cpu_share=max(part.cpu_s for part in parts) / (window[1] - window[0]),
        window_s=span,
    )


async def _drive(load: ClosedLoad, cue: Cue) -> _Part:
    part = _Part([], [], Counter(), [], 0.0)
    answers = KeptAnswers()
    requests = load.burn_in_requests
    sent = 0
    running = True
    warm = asyncio.Event()

    async with load.transport(load.address, load.method, streams=load.streams) as call:

        async def caller() -> None:
            nonlocal sent
            while running:
                index, timed = sent % len(requests), requests is load.requests
                sent += 1
                if sent >= 3 * load.concurrency:
                    # One request of each caller is under way, so two thirds are answered.
                    warm.set()
                started = time.monotonic()
                try:
                    answer = await call(requests[index])
                except CallError as error:
                    part.errors[error.status] += 1
                    await asyncio.sleep(_PAUSE_AFTER_ERROR_S)
                    continue
                ended = time.monotonic()
                part.finished_s.append(ended)
                part.latency_s.append(ended - started)
                answers.add(index, answer, is_timed=timed)

        async with asyncio.TaskGroup() as callers:
            for _ in range(load.concurrency):
                callers.create_task(caller())
            await asyncio.sleep(load.burn_in_s)
            await warm.wait()
            start, end = await cue.window()
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            requests, cpu_before = load.requests, time.process_time()
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            part.cpu_s = time.process_time() - cpu_before
            running = False
    part.answers = answers.all()
    return part
