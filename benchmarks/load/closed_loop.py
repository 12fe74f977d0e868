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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.timing import BURN_IN_S
from fuseline.benchmarks.load.calls import CLASSIFY, Call, CallError, open_calls
from fuseline.benchmarks.load.generators import Cue, Window, drive, shares_of
from fuseline.serve.errors import BackendError

KEPT_ANSWERS = 256
"""How many answers of the burn-in each process keeps, to be checked."""
_PAUSE_AFTER_ERROR_S = 0.01


class Transport(Protocol):
    """How bytes get to a server: `fuseline.benchmarks.load.calls.open_calls`, or what stands in for it. A module's function."""

    def __call__(
        self, address: str, method: str, /, *, streams: int = 0, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[Call]:
        """Yield what sends one request and returns its answer, or raises `CallError`."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, how fast and how long."""

    address: str
    requests: tuple[bytes, ...]
    """Sent in turn while the clock runs."""
    burn_in_requests: tuple[bytes, ...]
    """Sent before, in turn: as many, for the same images, such that their answers can be checked closely."""
    concurrency: int
    seconds: float
    burn_in_s: float = BURN_IN_S
    method: str = CLASSIFY
    processes: int = 1
    streams: int = 0
    """0: `method` is unary. Else it is bidirectional and each process shares its callers out over so many streams."""
    transport: Transport = open_calls
    """What `method` is given to: gRPC, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came back."""

    requests_per_s: float
    """Answered without an error."""
    latency_s: NDArray[np.float64]
    """Of each request that was answered in the window, from just before it was sent."""
    errors: Counter[str]
    """gRPC status to how often, burn-in included."""
    answers: tuple[tuple[int, bytes], ...]
    """(index of the request, serialised answer): the latest of the burn-in and the last to each timed request."""
    generator_cpu_share: float
    """CPU seconds of the busiest generator process for each second of the window; near 1 it limits what is measured."""
    window_s: float


def run_closed_loop(load: Load, at_edge: Callable[[], None] = lambda: None) -> LoadResult:
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


def _merge(parts: Sequence[_Part], window: Window, concurrency: int) -> LoadResult:
    errors: Counter[str] = sum((part.errors for part in parts), Counter())
    finished = np.concatenate([part.finished_s for part in parts])
    counted = answers_in_window(finished, window, concurrency)
    if counted is None:
        seconds = window[1] - window[0]
        failed = ", ".join(f"{number} {status}" for status, number in errors.items()) or "no errors either"
        raise BackendError(f"no two answers came apart within {seconds:g} s ({failed}); measure longer with --seconds")
    chosen, span = counted
    latency = np.concatenate([part.latency_s for part in parts])[chosen]
    return LoadResult(
        requests_per_s=int(chosen.sum()) / span,
        latency_s=latency,
        errors=errors,
        answers=tuple(answer for part in parts for answer in part.answers),
        generator_cpu_share=max(part.cpu_s for part in parts) / (window[1] - window[0]),
        window_s=span,
    )


async def _drive(load: Load, cue: Cue) -> _Part:
    part = _Part([], [], Counter(), [], 0.0)
    burn_in_answers: deque[tuple[int, bytes]] = deque(maxlen=KEPT_ANSWERS)
    last_answers: dict[int, bytes] = {}
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
                if timed:
                    last_answers[index] = answer
                else:
                    burn_in_answers.append((index, answer))

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
    part.answers = [*burn_in_answers, *last_answers.items()]
    return part
