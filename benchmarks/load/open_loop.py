"""The load generator's open loop: requests go out when they are due, whether or not there were answers.

Arrivals are a Poisson process, drawn before anything is sent. A latency counts from when its request was due, not from
when it was sent: a generator or a server that stalls delays all who come meanwhile, and all of them count (no
coordinated omission: G. Tene, "How NOT to Measure Latency", 2013). How late requests went out is reported beside it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.load.calls import Call, CallError
from fuseline.benchmarks.load.generators import Cue, Window, drive
from fuseline.benchmarks.load.load import KeptAnswers, Load, LoadResult, counted
from fuseline.serve.errors import BackendError, InputError

UNANSWERED = "UNANSWERED"
"""Under way when the generator waited no longer."""
NOT_SENT = "NOT_SENT"
"""Due while the generator had as many under way as it holds."""
_MAX_UNDER_WAY = 10_000
_MAX_BYTES_UNDER_WAY = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad(Load):
    """What is sent, how often and how long."""

    rate_per_s: float
    """Requests a second, of all processes together."""
    seed: int = 0
    timeout_s: float | None = None
    """The deadline that is sent with each unary call."""
    patience_s: float = 10.0
    """How long the first answer of all is waited for, and the last ones after the window."""
    max_under_way: int | None = None
    """Requests under way of each process, beyond which nothing is sent. None: 10,000, or as many as take 1 GiB."""
    cool_down_s: float = 0.0
    """How long the load goes on after the window. Without it a server that drops requests finds room for the last of
    the window."""
    least_answers: int = 1
    """Fewer answers in the window end the run; 0 where a server may fail to answer any in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenResult(LoadResult):
    """What came back to the requests that were due in the window. Each of them is in `latency_s` or was refused.

    A latency is from when its request was due to its answer. Of those unanswered or not sent it is to when they were no
    longer waited for, which is less than the truth. `errors` has `UNANSWERED` and `NOT_SENT` too, of the cool-down too.
    """

    due: int
    answered: int
    send_lag_s: NDArray[np.float64]
    """Seconds from when each request was due to just before it was sent."""
    answered_latency_s: NDArray[np.float64]
    """The part of `latency_s` that has answers."""
    window_errors: Counter[str]
    """The part of `errors` that was due in the window."""


def run_open_loop(load: OpenLoad, at_edge: Callable[[], None] = lambda: None) -> OpenResult:
    """Drive `load` and return what was measured; `at_edge` is called at the start and at the end of the window.

    Raises:
        InputError: no request would be due in the window.
        BackendError: fewer than `least_answers` came, or the server gave no sign of life.
    """
    if round(load.rate_per_s * load.seconds) < 1:
        raise InputError(
            f"a rate of {load.rate_per_s:g}/s for {load.seconds:g} s is less than one request; measure longer"
        )
    burn_in = poisson_arrivals(load.rate_per_s, load.burn_in_s, load.seed + 1) - load.burn_in_s
    timed = poisson_arrivals(load.rate_per_s, load.seconds, load.seed)
    cool_down = poisson_arrivals(load.rate_per_s, load.cool_down_s, load.seed + 2) + load.seconds
    plans = [
        _Plan(load, *(arrivals[n :: load.processes] for arrivals in (burn_in, timed, cool_down)))
        for n in range(load.processes)
    ]
    parts, window = drive(
        _drive,
        [plan for plan in plans if len(plan.timed_s)],
        seconds=load.seconds,
        lead_s=load.burn_in_s,
        drain_s=load.cool_down_s + load.patience_s,
        at_edge=at_edge,
        precise=True,
    )
    return _merge(parts, window, load.least_answers)


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Ascending times in [0, seconds) of `round(rate_per_s * seconds)` arrivals, the same for the same seed.

    A Poisson process given its number of arrivals is that many independent uniform times, sorted (S. M. Ross,
    "Stochastic Processes", theorem 2.3.1); so the offered rate is the one asked for and doesn't vary with the seed.
    """
    arrivals = round(rate_per_s * seconds)
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, arrivals))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The part of one process; times from the window's start."""

    load: OpenLoad
    burn_in_s: NDArray[np.float64]
    timed_s: NDArray[np.float64]
    cool_down_s: NDArray[np.float64]


@dataclass(slots=True)
class _Part:
    """What one process saw of the requests that were due in the window."""

    answered_latency_s: NDArray[np.float64]
    given_up_latency_s: NDArray[np.float64]
    send_lag_s: NDArray[np.float64]
    due: int
    errors: Counter[str]
    window_errors: Counter[str]
    answers: list[tuple[int, bytes]]
    cpu_share: float = 0.0


def _merge(parts: Sequence[_Part], window: Window, least_answers: int) -> OpenResult:
    errors: Counter[str] = sum((part.errors for part in parts), Counter())
    answered = np.concatenate([part.answered_latency_s for part in parts])
    if len(answered) < least_answers:
        few = f"only {len(answered)}" if len(answered) else "nothing"
        raise BackendError(f"{few} of what was sent in {window[1] - window[0]:g} s was answered ({counted(errors)})")
    return OpenResult(
        due=sum(part.due for part in parts),
        answered=len(answered),
        latency_s=np.concatenate([answered, *(part.given_up_latency_s for part in parts)]),
        send_lag_s=np.concatenate([part.send_lag_s for part in parts]),
        answered_latency_s=answered,
        errors=errors,
        window_errors=sum((part.window_errors for part in parts), Counter()),
        answers=tuple(answer for part in parts for answer in part.answers),
        generator_cpu_share=max(part.cpu_share for part in parts),
        window_s=window[1] - window[0],
    )


async def _drive(plan: _Plan, cue: Cue) -> _Part:
    load = plan.load
    async with load.transport(load.address, load.method, streams=load.streams, timeout_s=load.timeout_s) as call:
        try:
            await asyncio.wait_for(_one_answer(call, load.burn_in_requests[0]), load.patience_s)
        except TimeoutError as error:
            raise BackendError(f"{load.address} answered no request within {load.patience_s:g} s") from error
        start, end = await cue.window()
        sender = _Sender(load, call)
        await sender.send(load.burn_in_requests, start + plan.burn_in_s)
        sender.begin_window(len(plan.timed_s))
        cpu_before, began = time.process_time(), time.monotonic()
        await sender.send(load.requests, start + plan.timed_s)
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        # A generator that is late is busy beyond the window's end.
        cpu_share = (time.process_time() - cpu_before) / (time.monotonic() - began)
        sender.end_window()
        await sender.send(load.burn_in_requests, start + plan.cool_down_s)
        part = await sender.finish(end + load.cool_down_s + load.patience_s)
    part.cpu_share = cpu_share
    return part


async def _one_answer(call: Call, request: bytes) -> None:
    """Return when the connection stands: a first request would else pay for it."""
    while True:
        try:
            await call(request)
        except CallError:
            await asyncio.sleep(0.1)
        else:
            return


class _Sender:
    """Sends what is due and keeps the books."""

    def __init__(self, load: OpenLoad, call: Call) -> None:
        self._call = call
        self._max_under_way = load.max_under_way or _most_under_way(max(map(len, load.requests)))
        self._under_way: set[asyncio.Task[None]] = set()
        self._errors: Counter[str] = Counter()
        self._window_errors: Counter[str] = Counter()
        self._answers = KeptAnswers()
        self._due = 0
        self._answered_latency_s: list[float] = []
        self._given_up_due_s: list[float] = []
        self._send_lag_s: list[float] = []
        self._is_timed = False

    def begin_window(self, due: int) -> None:
        """What is sent from now on is timed; so many will be due."""
        self._is_timed = True
        self._due = due

    def end_window(self) -> None:
        """What is sent from now on keeps the load up and is not timed."""
        self._is_timed = False

    async def send(self, requests: tuple[bytes, ...], due_s: NDArray[np.float64]) -> None:
        """Send `requests` in turn, each when it is due."""
        for number, due in enumerate(due_s.tolist()):
            # Also when it is late: answers are taken in only while this sleeps.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._under_way) >= self._max_under_way:
                self._give_up(NOT_SENT, due, is_timed=self._is_timed)
                continue
            index = number % len(requests)
            task = asyncio.create_task(self._ask(requests[index], index, due, is_timed=self._is_timed))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def finish(self, until: float) -> _Part:
        """Wait for the last answers, but not beyond `until`."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=max(0.0, until - time.monotonic()))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        now = time.monotonic()
        return _Part(
            answered_latency_s=np.array(self._answered_latency_s),
            given_up_latency_s=now - np.array(self._given_up_due_s),
            send_lag_s=np.array(self._send_lag_s),
            due=self._due,
            errors=self._errors,
            window_errors=self._window_errors,
            answers=self._answers.all(),
        )

    async def _ask(self, request: bytes, index: int, due: float, *, is_timed: bool) -> None:
        if is_timed:
            self._send_lag_s.append(time.monotonic() - due)
        try:
            answer = await self._call(request)
        except CallError as error:
            self._count(error.status, is_timed=is_timed)
            return
        except asyncio.CancelledError:
            self._give_up(UNANSWERED, due, is_timed=is_timed)
            raise
        if is_timed:
            self._answered_latency_s.append(time.monotonic() - due)
        self._answers.add(index, answer, is_timed=is_timed)

    def _give_up(self, why: str, due: float, *, is_timed: bool) -> None:
        self._count(why, is_timed=is_timed)
        if is_timed:
            self._given_up_due_s.append(due)

    def _count(self, status: str, *, is_timed: bool) -> None:
        self._errors[status] += 1
        if is_timed:
            self._window_errors[status] += 1


def _most_under_way(request_bytes: int) -> int:
    return max(64, min(_MAX_UNDER_WAY, _MAX_BYTES_UNDER_WAY // request_bytes))
