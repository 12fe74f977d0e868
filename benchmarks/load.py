"""The load generator: a closed loop of unary gRPC calls from processes of its own.

Each of `concurrency` callers sends its next request as soon as it has the answer to the one before. Requests are
serialised beforehand and answers are kept as bytes, so that the generator spends as little as Python's gRPC allows.

A batching server answers in bursts. To count whole bursts only, both ends of the window are moved back to the end of a
burst: with a fixed window of 5.5 bursts, five or six would count by chance.
"""

import asyncio
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats import BURN_IN_S
from serve.errors import BackendError

CLASSIFY = "/fuseline.v1.Classifier/Classify"
_KEPT_ANSWERS = 256
_STALL_S = 120.0
_PAUSE_AFTER_ERROR_S = 0.01
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A proxy has no part in what is measured.
    ("grpc.enable_http_proxy", 0),
)


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
    shares = [share for share in _split(load.concurrency, load.processes) if share]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        connections = []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_generate, args=(theirs, load, share), daemon=True)
            process.start()
            theirs.close()
            stack.callback(_end, process)
            stack.callback(ours.close)
            connections.append(ours)
        for connection in connections:
            _receive(connection, "the burn-in", load.burn_in_s)
        start = time.monotonic() + 0.02
        window = (start, start + load.seconds)
        for connection in connections:
            connection.send(window)
        for edge in window:
            time.sleep(max(0.0, edge - time.monotonic()))
            at_edge()
        parts = [_receive(connection, "the last answers", 0) for connection in connections]
    return _merge(parts, window, load.concurrency)


def answers_in_window(
    finished_s: NDArray[np.float64], window: tuple[float, float], concurrency: int
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


def _split(concurrency: int, processes: int) -> list[int]:
    return [concurrency // processes + (number < concurrency % processes) for number in range(processes)]


def _receive(connection: Connection, what: str, extra_s: float) -> Any:
    try:
        if connection.poll(_STALL_S + extra_s):
            return connection.recv()
    except (EOFError, OSError) as error:
        raise BackendError(f"a load generator died in {what}; what it said is on stderr") from error
    raise BackendError(f"the server gave no answer for {_STALL_S:.0f} s in {what}")


def _end(process: Any) -> None:
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()


def _merge(parts: Sequence[_Part], window: tuple[float, float], concurrency: int) -> LoadResult:
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


def _generate(connection: Connection, load: Load, concurrency: int) -> None:
    import signal

    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection.send(runner.run(_drive(connection, load, concurrency)))


async def _drive(connection: Connection, load: Load, concurrency: int) -> _Part:
    import grpc

    part = _Part([], [], Counter(), [], 0.0)
    burn_in_answers: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_ANSWERS)
    last_answers: dict[int, bytes] = {}
    requests = load.burn_in_requests
    sent = 0
    running = True
    warm, window_came = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_reader(connection.fileno(), window_came.set)

    async with grpc.aio.insecure_channel(load.address, options=_CHANNEL_OPTIONS) as channel:
        # No serialisers: bytes go out and come back as they are.
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(load.method)

        async def caller() -> None:
            nonlocal sent
            while running:
                index, timed = sent % len(requests), requests is load.requests
                sent += 1
                if sent >= 3 * concurrency:
                    # One request of each caller is under way, so two thirds are answered.
                    warm.set()
                started = time.monotonic()
                try:
                    answer = await call(requests[index])
                except grpc.aio.AioRpcError as error:
                    part.errors[error.code().name] += 1
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
            for _ in range(concurrency):
                callers.create_task(caller())
            await asyncio.sleep(load.burn_in_s)
            await warm.wait()
            connection.send(None)
            await window_came.wait()
            asyncio.get_running_loop().remove_reader(connection.fileno())
            # libuv leaves what it has watched non-blocking; `connection` reads and writes whole messages.
            os.set_blocking(connection.fileno(), True)
            start, end = connection.recv()
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            requests, cpu_before = load.requests, time.process_time()
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            part.cpu_s = time.process_time() - cpu_before
            running = False
    part.answers = [*burn_in_answers, *last_answers.items()]
    return part
