"""Turns requests into batches: an asyncio queue in front of a backend's lanes, each called by one thread.

While the lanes are busy the next batch forms; an idle one takes what is there. A batch that takes less time than its
hand-over to a thread would is computed on the event loop. This module knows neither gRPC nor the model.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fuseline.serve.batching.admission import Admission, Load, Ready, Reservation, passed_deadline
from fuseline.serve.batching.batch_computer import backend_error
from fuseline.serve.batching.batch_stats import BatchStats, Misses, stats_of
from fuseline.serve.batching.bucket_choice import BucketChoice
from fuseline.serve.batching.call_thread import call_aside
from fuseline.serve.batching.departure import reason_of
from fuseline.serve.batching.flows import Flow
from fuseline.serve.batching.lane_pool import LanePool
from fuseline.serve.batching.lane_recovery import LaneRecovery, Watch
from fuseline.serve.batching.lanes import Infer, Lane, rows_to_start, seconds_until_free
from fuseline.serve.batching.latency_control import Decision, LatencyControl
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.predictions import UNPREDICTED, PredictedAnswer
from fuseline.serve.batching.request_queue import RequestQueue
from fuseline.serve.batching.requests import (
    ANYONE,
    Batch,
    BatchedRows,
    Caller,
    Logits,
    Request,
    Row,
    check_rows,
)
from fuseline.serve.errors import BackendLostError, DeadlineError, ShuttingDownError
from fuseline.serve.process.event_loop import call_after_turns

__all__ = ["BatchStats", "BatchedRows", "Batcher", "Logits", "Misses", "Row"]

PROBE_AFTER_SECONDS = 0.5
"""Seconds without a measured batch after which an idle batcher tries a request that its profile would refuse."""

DELIVERY_TURNS = 3
"""Number of turns of the event loop after which whoever waits for an answer has written it."""

SHORTEST_WAIT_SECONDS = 0.0001
"""Precision of timers: no shorter wait is worth setting one."""


class Batcher:
    """Batches rows of many requests for one backend. Everything but `infer` happens on one event loop.

    - Every future that `submit` returned is settled exactly once, also when the backend raises or misbehaves.
    - Requests of one client, of one priority and of about one size start in the order of admission. Beyond that rows
      are shared out as `fuseline.serve.batching.flows` says: who has little waiting goes before who has much, and
      nobody gets less than a share. Rows are counted, not requests: one that doesn't fit into the batch is split and
      its results joined, in row order.
    - Batches run on as many lanes as the policy says, side by side, and may end in any order. Each lane is called by
      one thread at a time, a thread of its own or the event loop's, with as many rows as one of the policy's buckets:
      those of the requests and, to fill the bucket, rows of zeros whose logits nobody gets.
    - A batch that fails, fails its own requests only; the next one runs. One that hangs holds up its own lane only,
      and fails, where a `watch` is given, once that says so: `LaneRecovery` has what becomes of its lane.
    - Cancelled requests leave the queue before a batch forms, and so do requests that can't be answered in time any
      more.
    """

    def __init__(
        self,
        infer: Callable[[NDArray[Any]], Logits],
        policy: BatchPolicy,
        *,
        row_shape: tuple[int, ...],
        row_dtype: DTypeLike = np.uint8,
        lanes: Sequence[Callable[[NDArray[Any]], Logits]] = (),
        seconds_per_bucket: Mapping[int, float] | None = None,
        alone_seconds_per_bucket: Mapping[int, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchStats], None] | None = None,
        on_misses: Callable[[Misses], None] | None = None,
        on_decision: Callable[[Decision], None] | None = None,
        executor: Executor | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Make an idle batcher.

        Args:
            infer: computes (rows, *row_shape) of `row_dtype` -> logits (rows, classes) float32. The result belongs to
                the batcher; the argument is overwritten once the call has returned.
            policy: says how batches are formed, and how many rows may wait.
            row_shape: shape of one row.
            row_dtype: type of its elements.
            lanes: functions that do what `infer` does, side by side, as many as the policy's `lanes`; none: `infer` is
                the only lane. Beside them `infer` computes what has at most `alone_rows`, while no lane works.
            seconds_per_bucket: seconds that a lane's batch of each bucket takes while the others work too, measured at
                warm-up; every batch refines it.
            alone_seconds_per_bucket: seconds that `infer` takes beside lanes, for each of the policy's `alone_buckets`.
            clock: tells monotonic seconds; deadlines are on it.
            on_batch: is called on the event loop after each batch.
            on_misses: is called on the event loop once the answers of a batch are handed out.
            on_decision: is called on the event loop with what the policy's `latency_target_ms` led to.
            executor: makes the lanes' calls, as many at a time as there are lanes, and is left running by `drain`;
                None: a thread for each lane.
            watch: says when a call counts as one that never ends; None: never.
        """
        if not row_shape:
            raise ValueError("row_shape (): expected at least one dimension")
        if len(lanes or [infer]) != policy.lanes:
            raise ValueError(f"{len(lanes)} lanes: expected {policy.lanes}, as the policy says")
        self._policy = policy
        self._row_shape, self._row_dtype = tuple(row_shape), np.dtype(row_dtype)
        self._buckets = policy.buckets
        self._small_batch_rows = policy.small_batch_rows
        self._spreads = not policy.lanes_share_device
        self._max_delay_seconds = policy.max_delay_ms / 1000
        self._inline_below_seconds = policy.inline_below_ms / 1000
        self._clock = clock
        self._on_batch = on_batch
        self._on_misses = on_misses
        self._pool = LanePool(
            lanes or [infer],
            infer if lanes else None,
            policy,
            row_shape=self._row_shape,
            row_dtype=self._row_dtype,
            seconds_per_bucket=seconds_per_bucket or {},
            alone_seconds_per_bucket=alone_seconds_per_bucket or {},
            clock=clock,
            executor=executor,
        )
        profile, alone = self._pool.profile, self._pool.alone
        self._admission = Admission(profile, policy, None if alone is None else alone.profile)
        # Predictions for requests that left the queue as they would have been late, and when their answers would have
        # come.
        self._dropped: list[tuple[PredictedAnswer, float]] = []
        self._queue = RequestQueue(self._small_batch_rows)
        self._control: LatencyControl | None = None
        self._on_decision = on_decision
        if policy.latency_target_ms is not None:
            self._control = LatencyControl(policy.latency_target_ms / 1000, profile, self._buckets, clock())
        self._bucket_choice = BucketChoice(policy.buckets, self._queue, self._admission)
        # Rows that workers have reserved, for whichever callers.
        self._reserved_rows = 0
        # Most rows that the batch may have that was looked at last.
        self._most_rows = 0
        # Rows that were queued when the event loop last turned, and the number of turns since their number last grew.
        self._seen_rows = self._quiet_turns = 0
        self._wake: asyncio.Handle | None = None
        self._draining = False
        self._drained = asyncio.Event()
        self._recovery: LaneRecovery | None = None
        self.is_lost = False
        """Whether every lane hangs and none will be replaced: nothing is admitted, unless a call returns after all."""
        if watch is not None:
            self._recovery = LaneRecovery(
                watch,
                lanes=lambda: self._pool.all,
                clock=clock,
                run_aside=partial(call_aside, "fuseline-spare") if executor is None else executor.submit,
                settle=self._finish,
                join=self._join,
                give_up=self._give_up,
            )

    @property
    def is_stalled(self) -> bool:
        """Whether no lane computes at present, as all of them hang; one may be about to be replaced."""
        return self._pool.all_lost

    @property
    def hung_calls(self) -> int:
        """Number of calls of the backend that were given up and have not returned; what they hold is lost."""
        return 0 if self._recovery is None else self._recovery.hung_calls

    @property
    def queued_rows(self) -> int:
        """Number of rows that wait for a batch."""
        return self._queue.rows

    @property
    def queued_requests(self) -> int:
        """Number of requests with rows that wait for a batch."""
        return self._queue.requests

    @property
    def bucket_seconds(self) -> Mapping[int, float]:
        """Seconds of a lane's batch in each bucket that was measured, by now."""
        profile = self._pool.profile
        return {bucket: profile.batch_seconds(bucket) for bucket in self._buckets if profile.is_measured(bucket)}

    @property
    def policy(self) -> BatchPolicy:
        """Policy by which batches are formed."""
        return self._policy

    @property
    def running_rows(self) -> int:
        """Number of rows of the batches that the backend computes now, before padding."""
        return sum([len(batch.rows) for batch in self._pool.running()])

    @property
    def backpressure(self) -> Literal["rows", "time"] | None:
        """Reason why callers that can wait should hold back; see `Admission.backpressure`."""
        return self._admission.backpressure(self.load(self._clock()))

    @property
    def predicted_wait_s(self) -> float:
        """Seconds that a row which came now would wait for its batch to begin, as `Admission.predict` has them."""
        load = self.load(self._clock())
        return self._admission.predict(load.waiting_rows, 1, load.lane_seconds).starts

    def reserve(
        self,
        row_count: int,
        *,
        deadline: float | None = None,
        ready: Ready,
        caller: Caller = ANYONE,
    ) -> Reservation:
        """Admit a request whose rows will be there when `ready` says, or refuse it at once, as `submit` does.

        Until the reservation is given to `submit`, or released, its rows count as queued for later requests.
        """
        if self._draining:
            raise _shutting_down()
        if self.is_lost:
            raise _backend_lost()
        now = self._clock()
        predicted = self._admission.check(self.load(now, row_count, caller), row_count, deadline, now, ready)
        flow = self._queue.reserve(row_count, caller)
        return Reservation(row_count, predicted, on_release=partial(self._release, flow))

    def release_rows(self, row_count: int) -> None:
        """Release `row_count` rows that another process has reserved; a negative number reserves more."""
        self._reserved_rows -= row_count
        self._released()

    def _release(self, flow: Flow, row_count: int) -> None:
        self._queue.release(flow, row_count)
        self._released()

    def _released(self) -> None:
        if self._draining:
            # Not before `submit`, which releases a reservation first, has queued its rows.
            asyncio.get_running_loop().call_soon(self._set_drained_if_idle)

    def admission_snapshot(self) -> list[float]:
        """Return what another process needs to admit requests by itself: see `fuseline.serve.workers.remote_batcher`.

        The numbers are the rows that are queued, reserved, and running; when a batch was last measured; the queue's
        `kinds`; when each lane is free, as `Lane.free_at` says; and `Admission.state`.
        """
        queued, now = self._queue.rows, self._clock()
        ahead = (queued, self._queue.waiting_rows - queued + self._reserved_rows, self.running_rows)
        return [*ahead, self._pool.learned_at, *self._queue.kinds, *self._pool.free_at(now), *self._admission.state()]

    def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        reservation: Reservation | None = None,
        caller: Caller = ANYONE,
        trace: object = None,  # noqa: ARG002
    ) -> asyncio.Future[BatchedRows]:
        """Admit a request or refuse it at once; one with a `reservation` is admitted already.

        Call it on the event loop. `trace` is for stand-ins in other processes: here the future tells whose rows a batch
        has.

        The rows, each of the row shape and type, must not change until the future is done. Cancelling the future drops
        the request: rows that are not in a batch yet never run and make room at once.

        The future fails with `DeadlineError` when it turns out, before all its rows are in a batch, that `deadline` (on
        the batcher's clock) can't be met, and with `BackendError`, or the `FuselineError` that the backend raised, when
        one of its batches fails.

        Raises:
            RequestError: no rows, or a row of another shape or dtype.
            OverloadedError: there is no room for so many rows, or too many are ahead of them to meet the deadline.
            DeadlineError: the deadline has passed or, by the measured time of batches, can't be met by an idle server.
            ShuttingDownError: `drain` was called, and there is no `reservation`.
            BackendLostError: every lane hangs.
        """
        if reservation is not None:
            # Whatever becomes of the request, its rows are queued now, or never.
            reservation.release()
        elif self._draining:
            raise _shutting_down()
        if self.is_lost:
            raise _backend_lost()
        check_rows(rows, self._row_shape, self._row_dtype)
        row_count = len(rows)
        now, queue = self._clock(), self._queue
        if now >= queue.earliest_deadline:
            queue.drop_expired(now)
        if reservation is None:
            if (
                deadline is None
                and queue.waiting_rows + self._reserved_rows + row_count <= self._admission.free_rows
                and not self._admission.needs_prediction()
            ):
                predicted = UNPREDICTED
            else:
                predicted = self._admission.check(self.load(now, row_count, caller), row_count, deadline, now)
        else:
            predicted = reservation.predicted
            if deadline is not None and deadline <= now:
                raise passed_deadline(now - deadline)
        request = Request(
            tuple(rows),
            deadline=math.inf if deadline is None else deadline,
            admitted=now,
            prediction=predicted,
            on_cancel=self.discard,
            caller=caller,
        )
        queue.add(request)
        if self._pool.idle:
            # No batch starts before this turn of the event loop ends, so that all that arrived in it forms one batch.
            if self._wake is not None and self._max_delay_seconds:
                self._wake.cancel()
                self._wake = None
            if self._wake is None:
                self._wake = request.get_loop().call_soon(self._turn)
        return request

    async def drain(self) -> None:
        """Admit nothing new, run all that is admitted, and return once idle; then the batcher's threads have ended.

        Reservations count as admitted: each is waited for until it is submitted or released.
        """
        self._draining = True
        if self._pool.idle:
            self._start_batches()
        self._set_drained_if_idle()
        await self._drained.wait()
        self._pool.end_threads()
        self._pool.join_threads()

    def load(self, now: float, row_count: int = 1, caller: Caller = ANYONE) -> Load:
        """Return what is ahead of a request of so many rows that comes now."""
        waiting = self._queue.waiting_rows + self._reserved_rows
        standing = self._queue.standing(row_count, caller, now, self._reserved_rows)
        if not (running := self.running_rows):
            idle = not waiting and now - self._pool.learned_at >= PROBE_AFTER_SECONDS
            return Load(waiting, 0, self._admission.idle_lanes, idle, standing)
        return Load(waiting, running, seconds_until_free(self._pool.free_at(now), now), standing=standing)

    def computes(self, request: asyncio.Future[BatchedRows]) -> bool:
        """Return whether a batch that is being computed has rows of `request`, which `submit` returned."""
        return any(request is each for batch in self._pool.running() for each, _, _ in batch.shares)

    def discard(self, request: Request) -> None:
        """Take the rest of a request out of the queue, if any of its rows are left there."""
        self._queue.remove(request)
        self._set_drained_if_idle()

    def _turn(self, *, between_answers: bool = False) -> None:
        """Start batches, or wait for the event loop's next turn while rows keep coming."""
        if between_answers and self._wake is not None:
            # Another lane idles already, and the pending turn is for both.
            return
        if self._queue.rows and self._may_grow():
            self._wake = asyncio.get_running_loop().call_soon(self._turn)
            return
        self._wake = None
        self._start_batches(between_answers=between_answers)

    def _start_batches(self, *, between_answers: bool = False) -> None:
        """Have idle lanes compute what waits, unless `max_delay_ms` lets it wait for a fuller batch.

        With `between_answers`, those of the batch before are still to be handed out, so none is computed on the event
        loop.
        """
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        loop, now = asyncio.get_running_loop(), self._clock()
        if now >= self._queue.earliest_deadline:
            self._queue.drop_expired(now)
        while self._queue.rows and self._pool.idle:
            if self._max_delay_seconds and (seconds := self._seconds_to_wait(now)) > SHORTEST_WAIT_SECONDS:
                self._wake = loop.call_later(seconds, self._turn)
                return
            queue = self._queue
            self._admission.begin_batch(
                queue.rows,
                queue.admitted_rows,
                now,
                len(self._pool.idle),
                queue.passed_at,
                queue.admitted_passable_rows,
            )
            lane, rows = self._next_lane()
            if not rows:
                return
            waiting = self._queue.rows
            bucket, late = self._bucket_choice.next_bucket(now, rows, lane.profile)
            for request, finish in late:
                self._drop(request, finish, now)
            if not self._queue.rows:
                break
            inline = lane.profile.batch_seconds(bucket) < self._inline_below_seconds
            if inline and between_answers:
                self._wake = loop.call_soon(self._turn)
                return
            lane.running = batch = self._queue.take_batch(bucket, now)
            batch.reason = reason_of(
                len(batch.rows),
                waiting,
                self._most_rows,
                rows,
                self._bucket_choice.heeded_deadline,
                self._draining,
                between_answers,
                self._delay_left(batch.admitted, now) if self._max_delay_seconds else None,
            )
            self._pool.take(lane)
            self._seen_rows = self._quiet_turns = 0
            if inline:
                # Whoever watches sees nothing of it: the event loop itself hangs if this does.
                lane.compute(batch)
                self._finish(lane)
                return
            if self._recovery is not None:
                self._recovery.began()
            try:
                lane.hand_over(partial(self._run, lane, loop))
            except RuntimeError as error:
                batch.outcome = backend_error("the batcher's thread can't be used", error)
                loop.call_soon(self._finish, lane)
        if not self._queue.rows:
            self._seen_rows = self._quiet_turns = 0
            self._set_drained_if_idle()

    def _delay_left(self, admitted: float, now: float) -> float:
        """Return the seconds for which a request of that admission could have waited for a fuller batch."""
        return admitted + self._max_delay_seconds - now - SHORTEST_WAIT_SECONDS

    def _next_lane(self) -> tuple[Lane, int]:
        """Return the lane of the next batch, and the largest number of rows that it may have; 0: none begins yet."""
        queued, idle = self._queue.rows, len(self._pool.idle)
        if self._pool.alone is not None and self._pool.all_idle and queued <= self._policy.alone_rows:
            self._most_rows = self._policy.buckets[-1]
            return self._pool.alone, queued
        rows = self._most_rows = self._admission.size.of_next_batch(queued)
        if self._policy.lanes > 1:
            running = [len(batch.rows) for batch in self._pool.running()]
            rows = min(rows, rows_to_start(self._policy, queued, idle, running))
        return self._pool.idle[-1], rows

    def _may_grow(self) -> bool:
        """Return whether rows were queued within the last `quiet_turns` turns of the event loop."""
        rows = self._queue.rows
        if self._draining or rows >= self._small_batch_rows * (len(self._pool.idle) if self._spreads else 1):
            return False
        if rows > self._seen_rows:
            self._seen_rows, self._quiet_turns = rows, 0
            return True
        self._quiet_turns += 1
        return self._quiet_turns < self._policy.quiet_turns

    def _seconds_to_wait(self, now: float) -> float:
        if self._draining or self._queue.rows >= self._buckets[-1]:
            return 0.0
        fuller_until = self._queue.oldest_admitted + self._max_delay_seconds
        needed = self._admission.predict(0, self._queue.rows, self._admission.idle_lanes).answered
        return min(fuller_until, self._queue.earliest_deadline - needed - self._admission.margins.of(needed)) - now

    def _drop(self, request: Request, finish: float, now: float) -> None:
        waited, left = 1000 * (now - request.admitted), 1000 * (request.deadline - now)
        self._dropped.append((request.prediction, finish))
        request.set_exception(
            DeadlineError(
                f"after {waited:.1f} ms in the queue the deadline is in {left:.1f} ms, which is too soon: batches take "
                "longer than they did; allow more time or retry later"
            )
        )

    def _run(self, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        """Compute a lane's batch in its thread."""
        assert lane.running is not None
        lane.compute(lane.running)
        # Once the event loop is closed nobody waits for an answer.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish, lane)

    def _finish(self, lane: Lane) -> None:
        """Settle, on the event loop, the requests that the lane's batch completes."""
        batch, lane.running = lane.running, None
        if batch is None:
            # It was given up, and its requests have failed.
            assert self._recovery is not None
            self._recovery.came_back(lane)
            return
        number = self._pool.number_of(lane)
        self._pool.put_back(lane)
        outcome, start = batch.outcome, 0
        now = self._clock()
        if isinstance(outcome, np.ndarray):
            lane.profile.learn(batch.bucket, now - batch.started, now)
            # The next batch starts before the answers are handed out, so that the backend doesn't idle meanwhile.
            go_on = self._start_batches if batch.compute_seconds >= self._policy.slow_call_seconds else self._turn
            go_on(between_answers=True)
            for request, first_row, row_count in batch.shares:
                if not request.done():
                    request.add(outcome, start, first_row, row_count, batch)
                start += row_count
            call_after_turns(DELIVERY_TURNS, partial(self._note_delivery, batch, now))
        elif outcome is not None:
            for request, _, _ in batch.shares:
                self._queue.remove(request)
                if not request.done():
                    request.set_exception(outcome)
            self._turn(between_answers=True)
        self._set_drained_if_idle()
        if self._on_batch is not None:
            self._on_batch(stats_of(batch, number))

    def _join(self, lost: Lane, compute: Infer | None) -> None:
        """Let a lane that was lost work again in a new thread, by `compute` if that is given."""
        if self._drained.is_set():
            return
        self._pool.replace(lost, compute)
        self.is_lost = False
        self._turn(between_answers=True)

    def _give_up(self) -> None:
        """Fail what waits, and admit nothing: no lane is left."""
        self.is_lost = True
        for request in list(self._queue):
            self._queue.remove(request)
            if not request.done():
                request.set_exception(_backend_lost())
        self._set_drained_if_idle()

    def _note_delivery(self, batch: Batch, finished: float) -> None:
        """Learn, once the answers of a batch are handed out, how far the predictions of its requests missed."""
        now = self._clock()
        answered = [
            request.prediction
            for request, first_row, row_count in batch.shares
            if first_row + row_count == request.row_count and request.prediction is not UNPREDICTED
        ]
        dropped, self._dropped = self._dropped, []
        if self._on_misses is not None:
            self._on_misses(Misses([now - predicted.at for predicted in answered], len(dropped)))
        self._admission.learn(answered, now, late=dropped, delivery_seconds=now - finished)
        if self._control is not None and (decision := self._control.note_batch(batch, finished)) is not None:
            self._admission.size.most_rows, self._max_delay_seconds = decision.rung
            if self._on_decision is not None:
                self._on_decision(decision)

    def _set_drained_if_idle(self) -> None:
        if self._draining and not (self._queue.waiting_rows or self._reserved_rows or self._pool.running()):
            self._drained.set()


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down and admits nothing new; send the request elsewhere")


def _backend_lost() -> BackendLostError:
    return BackendLostError(
        "the backend hangs and can't be replaced, so this server is about to be started again; send the request again"
    )
