"""10,000 random schedules of submitting, cancelling, computing, failing, waiting and draining, on one thread."""

import asyncio
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseline.serve.batching.admission import Ready
from fuseline.serve.batching.batcher import BatchedRows
from fuseline.serve.batching.flows import size_class
from fuseline.serve.batching.request_queue import RequestQueue
from fuseline.serve.batching.requests import Caller
from fuseline.serve.batching.standing import KEPT_FREE
from fuseline.serve.errors import BackendError, DeadlineError, OverloadedError, ShuttingDownError
from tests.fakes.clock import Clock
from tests.fakes.executor import ManualExecutor
from tests.serve.batching.batchers import batcher_of

BUCKETS = ((1,), (4,), (1, 2, 4), (2, 3, 7))
QUEUE_ROWS = (1, 5, 12, 40)
INLINE_BELOW_MS = (0.0, 30.0, 100.0, 1e9)
"""None, those that turn out to be fast, most, and all are computed on the event loop."""
UNSATURATED_ROWS = (None, 1, 2, 5)
LANES = (1, 2, 3, 4)
MAX_QUEUE_MS = (float("inf"), 200.0)
ROW_SHAPE = (3,)


@dataclass(eq=False)
class Sent:
    """What the schedule knows of one request."""

    numbers: list[int]
    future: asyncio.Future
    deadline: float | None
    flow: tuple[str, int, int]
    cancelled: bool = False
    batch_failed: bool = False


def pixels_of(number):
    return np.array([number >> 8, number & 0xFF, 1], np.uint8)


def numbers_of(rows):
    return [int(high) << 8 | int(low) for high, low, is_row in rows if is_row]


def logits_of(numbers):
    return np.array([[n, -n, n * n % 251] for n in numbers], np.float32)


class WatchedQueue(RequestQueue):
    """Remembers the rows of each batch in the order in which batches begin."""

    def __init__(self, small_rows):
        super().__init__(small_rows)
        self.started = []

    def take_batch(self, bucket, now):
        batch = super().take_batch(bucket, now)
        self.started.append(numbers_of(batch.rows))
        return batch


class Schedule:
    """A batcher, a backend that checks what it is given, and an interpreter of bytes as actions on them."""

    def __init__(self, actions):
        self.actions = iter(actions)
        self.clock = Clock(0.0)
        self.buckets = BUCKETS[self.next() % len(BUCKETS)]
        self.max_queue_rows = QUEUE_ROWS[self.next() % len(QUEUE_ROWS)]
        settings, lanes = self.next(), self.next()
        self.lanes = LANES[lanes & 3]
        self.max_queue_ms = MAX_QUEUE_MS[settings >> 6 & 1]
        self.many_callers = bool(lanes & 0x40)
        self.fault = None
        self.executor = ManualExecutor()
        self.sent = []
        self.reservations = []
        self.computed = set()
        self.drains = []
        self.loop_errors = []
        self.batcher = batcher_of(
            self.infer,
            row_shape=ROW_SHAPE,
            buckets=self.buckets,
            max_queue_rows=self.max_queue_rows,
            max_queue_ms=self.max_queue_ms,
            max_delay_ms=3_600_000 if settings & 1 else 0,
            seconds_per_bucket={bucket: 0.1 * bucket for bucket in self.buckets} if settings & 2 else None,
            inline_below_ms=INLINE_BELOW_MS[settings >> 2 & 3],
            unsaturated_rows=UNSATURATED_ROWS[settings >> 4 & 3],
            lanes=(self.infer,) * self.lanes if self.lanes > 1 else (),
            lanes_share_device=bool(lanes & 4),
            alone_rows=0 if lanes & 8 else self.buckets[lanes >> 4 & len(self.buckets) - 1],
            alone_seconds_per_bucket={self.buckets[0]: 0.05} if settings & 2 else None,
            clock=self.clock,
            executor=self.executor,
        )
        self.started = self.batcher._queue.started

    def next(self):
        return next(self.actions, 0)

    def infer(self, pixels):
        assert pixels.shape[1:] == ROW_SHAPE
        assert len(pixels) in self.buckets
        numbers = numbers_of(pixels)
        padding = pixels[len(numbers) :]
        assert not padding.any()
        smallest = min(bucket for bucket in self.buckets if bucket >= len(numbers))
        assert len(pixels) == smallest
        # A batch that has begun, none twice; batches on other lanes may be computed before it.
        assert numbers in self.started
        assert self.computed.isdisjoint(numbers)
        self.computed.update(numbers)
        self.clock.now += 0.01 * len(pixels)
        fault, self.fault = self.fault, None
        if fault is not None:
            for sent in self.sent:
                sent.batch_failed |= not set(numbers).isdisjoint(sent.numbers)
            if fault == "raises":
                raise RuntimeError(fault)
            return np.zeros((len(pixels) + 1, 3), np.float32)
        return np.concatenate([logits_of(numbers), np.full((len(padding), 3), np.nan, np.float32)]).reshape(-1, 3)

    async def run(self):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.loop_errors.append(context))
        for action in self.actions:
            self.act(action)
            if action & 0x40:
                await self.turn()
            self.check_bounds()
        while self.reservations:
            self.use_reservation()
        self.drains.append(asyncio.create_task(self.batcher.drain()))
        await self.turn()
        for _ in range(2 * self.max_queue_rows + self.lanes):
            if not self.executor.calls and not self.batcher.queued_rows:
                break
            self.compute()
            await self.turn()
            self.check_bounds()
        await self.turn()
        self.check_end()

    async def turn(self):
        for _ in range(3):
            await asyncio.sleep(0)

    def act(self, action):
        kind, value = action & 0x07, action >> 3 & 0x07
        if self.reservations and self.next() & 1:
            self.use_reservation()
        if kind <= 2:
            self.submit(1 + (self.next() % 10 if value & 1 else 0), (None, None, 0.05, 0.5)[value >> 1])
        elif kind == 3 and self.sent:
            chosen = self.sent[-1 - self.next() % len(self.sent)]
            chosen.cancelled |= chosen.future.cancel()
        elif kind in (4, 5):
            self.compute()
        elif kind == 6:
            self.fault = "raises" if value & 1 else "wrong rows"
            self.compute()
        elif value == 7:
            self.drains.append(asyncio.create_task(self.batcher.drain()))
        else:
            self.clock.now += 0.02 * value

    def submit(self, count, patience):
        first = 1 + sum(len(sent.numbers) for sent in self.sent)
        numbers = list(range(first, first + count))
        deadline = None if patience is None else self.clock.now + patience
        caller = self.caller()
        kept_free = self.max_queue_rows // KEPT_FREE if self.many_callers else 0
        room = self.max_queue_rows - kept_free - self.batcher.queued_rows - self.reserved
        rows = [pixels_of(number) for number in numbers]
        try:
            reservation = self.reserve(count, deadline, caller) if self.next() & 1 else None
            if reservation is not None and self.next() & 1:
                # It waits for its images, and is sent or released by a later action.
                self.reservations.append((reservation, count, caller))
                return
            future = self.batcher.submit(rows, deadline=deadline, reservation=reservation, caller=caller)
        except OverloadedError as refused:
            # By rows, or because the deadline or the longest wait would be passed.
            assert count > room or deadline is not None or self.max_queue_ms < float("inf")
            told = refused.retry_after_s
            assert told is None or told > 0
        except DeadlineError:
            assert deadline is not None
        except ShuttingDownError:
            assert self.drains
        else:
            self.sent.append(Sent(numbers, future, deadline, self.flow(count, caller)))

    def reserve(self, count, deadline, caller):
        ready = 0.01 * (self.next() & 7)
        return self.batcher.reserve(count, deadline=deadline, ready=Ready(ready, ready / 2), caller=caller)

    def caller(self):
        """One of two clients and two priorities, in half of the schedules always the same."""
        value = self.next() if self.many_callers else 0
        return Caller("ab"[value & 1], 1 + (value >> 1 & 1))

    def flow(self, count, caller):
        return (*caller, size_class(count, self.batcher.policy.small_batch_rows))

    @property
    def reserved(self):
        return sum(count for _, count, _ in self.reservations)

    def use_reservation(self):
        reservation, count, caller = self.reservations.pop(0)
        if self.next() & 1:
            reservation.release()
            reservation.release()
            return
        first = 1 + sum(len(sent.numbers) for sent in self.sent)
        numbers = list(range(first, first + count))
        try:
            future = self.batcher.submit(
                [pixels_of(number) for number in numbers], reservation=reservation, caller=caller
            )
        except ShuttingDownError:
            assert self.drains
            reservation.release()
        else:
            self.sent.append(Sent(numbers, future, None, self.flow(count, caller)))

    def compute(self):
        """Let one of the lanes' calls be made, whichever; the others hang meanwhile."""
        if calls := self.executor.calls:
            calls.rotate(self.next() % len(calls))
            self.executor.make_next_call()

    def check_bounds(self):
        assert 0 <= self.batcher.queued_rows + self.reserved <= self.max_queue_rows
        assert 0 <= self.batcher.running_rows <= self.lanes * max(self.buckets)
        assert len(self.executor.calls) <= self.lanes
        waiting = sum(len(sent.numbers) for sent in self.sent if not sent.future.done())
        assert self.batcher.queued_rows <= waiting

    def check_end(self):
        assert not self.loop_errors
        # No row is in two batches, and those of a flow begin in the order of admission.
        begun = {number: place for place, number in enumerate(n for numbers in self.started for n in numbers)}
        assert len(begun) == sum(map(len, self.started))
        for flow in {sent.flow for sent in self.sent}:
            numbers = [number for sent in self.sent if sent.flow == flow for number in sent.numbers]
            places = [begun[number] for number in numbers if number in begun]
            assert places == sorted(places)
        assert (self.batcher.queued_rows, self.batcher.running_rows) == (0, 0)
        assert self.batcher.load(self.clock()).waiting_rows == 0
        assert all(drain.done() and drain.exception() is None for drain in self.drains)
        for sent in self.sent:
            assert sent.future.done()
            if sent.cancelled:
                assert sent.future.cancelled()
                continue
            error = sent.future.exception()
            if error is None:
                answer = sent.future.result()
                assert isinstance(answer, BatchedRows)
                np.testing.assert_array_equal(answer.logits, logits_of(sent.numbers))
                assert 1 <= answer.batch_rows <= max(self.buckets)
                assert not sent.batch_failed
            elif isinstance(error, DeadlineError):
                # It has passed, or what was measured says that it will have.
                assert sent.deadline is not None
                assert not self.computed.issuperset(sent.numbers)
            else:
                assert isinstance(error, BackendError)
                assert sent.batch_failed


@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=st.binary(min_size=30, max_size=80))
def check_schedule(runner, actions):
    runner.run(Schedule(actions).run())


def test_every_schedule_keeps_every_promise(monkeypatch):
    monkeypatch.setattr("fuseline.serve.batching.batcher.RequestQueue", WatchedQueue)
    with asyncio.Runner() as runner:
        check_schedule(runner)
