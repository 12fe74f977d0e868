"""A worker's end of a batcher that runs in the backend process."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from fuseline.serve.batching.admission import DELIVERY_RATE, Admission, Load, Ready, Reservation, passed_deadline
from fuseline.serve.batching.batcher import DELIVERY_TURNS, PROBE_AFTER_SECONDS
from fuseline.serve.batching.lanes import seconds_until_free
from fuseline.serve.batching.requests import ANYONE, BatchedRows, Caller, Row, check_rows
from fuseline.serve.batching.standing import WaitingKinds, standing_among
from fuseline.serve.errors import BackendLostError, OverloadedError, ShuttingDownError
from fuseline.serve.model import TracedRequest
from fuseline.serve.process.event_loop import call_after_turns
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.error_text import error_from_text
from fuseline.serve.workers.slots import SlotTable
from fuseline.serve.workers.wire_format import UNPREDICTED, ToWorker, cancel_record, drain_record, submit_record

RETIRE_TURNS = 16
"""Number of turns of the event loop within which a request that has found its model has also come to its batcher. A
stream's takes one."""


class RemoteBatcher:
    """Takes requests as `fuseline.serve.batching.batcher.Batcher` does, and has the backend process answer them.

    What `Batcher.submit` guarantees holds here, except that the backend's refusals come by the future. `submit` copies
    rows into shared memory, so the caller's may change once it has returned. A slot is free again once the backend no
    longer reads it, whatever became of its request. Everything happens on one event loop.
    """

    def __init__(self, arena: Arena, admission: Admission, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Admit nothing before `connect`.

        `admission` decides, by the backend's snapshots, on requests whose images are decoded here first.
        """
        self._arena = arena
        self._row_shape, self._row_dtype = arena.rows.shape[1:], arena.rows.dtype
        self._clock = clock
        self._slots = SlotTable(len(arena.rows))
        self._admission = admission
        # Seconds from the backend's answer until it is handed out here, which the backend's predictions leave out.
        self._delivery_seconds = 0.0
        # Number of the model in the process that `_send` leads to.
        self._model = 0
        self._send: Callable[[bytes], None] | None = None
        self._numbers = itertools.count()
        self._pending: dict[int, _RemoteRequest] = {}
        self._unanswered = 0
        # Rows that are admitted, and whose images are being decoded.
        self._reserved_rows = 0
        self._draining = False
        self._said_drained = False
        self._drained = asyncio.Event()

    @property
    def queued_rows(self) -> int:
        """Number of rows of all workers that wait for a batch, by the backend's latest snapshot."""
        return 0 if self._send is None else int(self._arena.admission_snapshot[0])

    @property
    def bucket_seconds(self) -> Mapping[int, float]:
        """Seconds of a lane's batch in each bucket, by the backend's latest snapshot; 0 is left out."""
        if self._send is None:
            return {}
        # It takes over what the snapshot says.
        self._load()
        return {bucket: seconds for bucket, seconds in self._admission.bucket_seconds.items() if seconds}

    @property
    def is_stalled(self) -> bool:
        """False: whether the backend computes is the supervisor's to say, for all models at once."""
        return False

    @property
    def is_lost(self) -> bool:
        """False, as `is_stalled` is."""
        return False

    @property
    def hung_calls(self) -> int:
        """0: this process calls no backend."""
        return 0

    @property
    def queued_requests(self) -> int:
        """Number of this worker's requests that wait or run: the backend tells rows alone."""
        return len(self._pending)

    @property
    def taken_slots(self) -> int:
        """Number of rows of this worker that wait, run, or have an answer that has yet to be read."""
        return self._slots.taken

    @property
    def backpressure(self) -> Literal["rows", "time"] | None:
        """Reason why callers that can wait should hold back; see `Admission.backpressure`."""
        if self._send is None:
            return None
        load = self._load()
        # Rows that the latest snapshot doesn't count yet lie in this worker's slots.
        sent = max(load.waiting_rows, self._slots.taken - load.running_rows)
        return self._admission.backpressure(load._replace(waiting_rows=sent))

    def connect(self, model: int, send: Callable[[bytes], None]) -> None:
        """Admit requests from now on.

        `model` is the model's number in the backend process to which `send` takes records, in order.
        """
        self._model = model
        self._send = send
        self._arena.reserved_rows = self._reserved_rows
        self._said_drained = False
        self._end_drain()

    def disconnect(self) -> None:
        """Fail every request under way, and admit none: the backend reads no slot any more.

        From here on, until the next `connect`, the memory may be used for something else.
        """
        if self._send is None:
            return
        self._send = None
        self._arena.admission_snapshot = [0.0, 0.0, 0.0]
        pending, self._pending = self._pending, {}
        for request in pending.values():
            self._slots.release(request.slots)
            if not request.done():
                request.set_exception(_lost())

    def reserve(
        self,
        row_count: int,
        *,
        deadline: float | None = None,
        ready: Ready,
        caller: Caller = ANYONE,
    ) -> Reservation:
        """Admit a request, as `Batcher.reserve` does, by the backend's latest snapshot, which tells no clients apart.

        Raises what `submit` does.
        """
        self._check_admits()
        load, now = self._load(row_count, caller), self._clock()
        predicted = self._admission.check(load, row_count, self._earlier(deadline), now, ready)
        self._reserve_rows(row_count)
        return Reservation(row_count, predicted, on_release=self._release_rows)

    def _reserve_rows(self, row_count: int) -> None:
        self._reserved_rows += row_count
        if self._send is not None:
            self._arena.reserved_rows = self._reserved_rows

    def _release_rows(self, row_count: int) -> None:
        self._reserve_rows(-row_count)
        if self._draining and not self._reserved_rows:
            # Not before `submit`, which releases a reservation first, has sent its rows.
            asyncio.get_running_loop().call_soon(self._end_drain)

    def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        reservation: Reservation | None = None,
        caller: Caller = ANYONE,
        trace: TracedRequest | None = None,
    ) -> asyncio.Future[BatchedRows]:
        """Send a request on its way, or refuse it at once. A `reservation` means it is admitted already.

        The future fails with what the backend's `Batcher.submit` raises or its future fails with, and with
        `BackendLostError` when the backend process ends. Cancelling it drops the request.

        Raises:
            RequestError: no rows, or a row of another shape or dtype.
            OverloadedError: there is no room for so many rows.
            DeadlineError: the deadline has passed.
            ShuttingDownError: `drain` was called, and there is no `reservation`.
            BackendLostError: the backend process has ended and is not yet back.
        """
        if reservation is None:
            self._check_admits()
        else:
            # Whatever becomes of the request, its rows are sent now, or never.
            reservation.release()
            self._check_connected()
        check_rows(rows, self._row_shape, self._row_dtype)
        if deadline is not None and (late_s := self._clock() - deadline) >= 0:
            raise passed_deadline(late_s)
        slots = self._slots.take(len(rows))
        if slots is None:
            raise OverloadedError(
                f"{self._slots.taken} rows are under way in this process, no room for {len(rows)} more; retry later"
            )
        shared = self._arena.rows
        for slot, row in zip(slots, rows, strict=True):
            shared[slot] = row
        number = next(self._numbers)
        request = _RemoteRequest(slots, partial(self._cancel, number), trace)
        request.add_done_callback(self._count_answered)
        self._pending[number] = request
        self._unanswered += 1
        until = self._earlier(deadline)
        predicted = UNPREDICTED if reservation is None else reservation.predicted
        assert self._send is not None
        assert not self._said_drained
        until = math.inf if until is None else until
        span = b"" if trace is None else trace.span_bytes
        self._send(submit_record(self._model, number, slots, until, predicted, caller, span))
        return request

    def _load(self, row_count: int = 1, caller: Caller = ANYONE) -> Load:
        """Return what is ahead of a request, by the backend's latest snapshot and this worker's reservations."""
        queued, reserved, running, learned_at, small, larger, bulk, *rest = self._arena.admission_snapshot
        lanes = len(self._admission.idle_lanes)
        free_at, state = rest[:lanes], rest[lanes:]
        self._admission.take_state(state)
        now = self._clock()
        waiting = int(queued + max(reserved, self._arena.reserved_rows))
        idle = not waiting and not running and now - learned_at >= PROBE_AFTER_SECONDS
        kinds = WaitingKinds(int(small), int(larger), int(bulk))
        standing = standing_among(
            kinds,
            row_count,
            caller.priority,
            is_small=row_count <= self._admission.size.small_rows,
            unknown_rows=max(0, waiting - sum(kinds)),
        )
        return Load(waiting, int(running), seconds_until_free(free_at, now), idle, standing)

    def _check_admits(self) -> None:
        if self._draining:
            raise ShuttingDownError("the server is shutting down and admits nothing new; send the request elsewhere")
        self._check_connected()

    def _check_connected(self) -> None:
        if self._send is None:
            raise _lost()

    def _earlier(self, deadline: float | None) -> float | None:
        """Return when the backend has to have the answer, so that it is handed out by `deadline`."""
        return None if deadline is None else deadline - self._delivery_seconds

    async def drain(self) -> None:
        """Admit nothing new, and return once every request has its answer.

        Reservations count as admitted: each is waited for until it is submitted or released.
        """
        self._draining = True
        self._end_drain()
        await self._drained.wait()

    async def retire(self) -> None:
        """Drain, after requests for which this batcher's model was found before have come: no more will be found."""
        for _ in range(RETIRE_TURNS):
            await asyncio.sleep(0)
        await self.drain()

    def _end_drain(self) -> None:
        """Tell the backend that nothing more comes, once that is so; and whoever drains, once all is answered."""
        if not self._draining or self._reserved_rows:
            return
        if not self._said_drained and self._send is not None:
            self._said_drained = True
            self._send(drain_record(self._model))
        if not self._unanswered:
            self._drained.set()

    def answered(self, heads: Sequence[ToWorker]) -> None:
        """Settle requests whose logits are in their slots, and free these."""
        requests = [self._pending.pop(head.number) for head in heads]
        # All of them share one copy, as the requests of a batch do.
        logits = self._arena.logits[[slot for request in requests for slot in request.slots]]
        start = 0
        for head, request in zip(heads, requests, strict=True):
            end = start + len(request.slots)
            self._slots.release(request.slots)
            if not request.done():
                request.set_result(
                    BatchedRows(logits[start:end], head.queue_ms, head.compute_ms, head.size, logits, start)
                )
            start = end
        call_after_turns(DELIVERY_TURNS, partial(self._note_delivery, self._clock()))

    def _note_delivery(self, began: float) -> None:
        self._delivery_seconds += DELIVERY_RATE * (self._clock() - began - self._delivery_seconds)

    def batched(self, number: int, batches: bytes) -> None:
        """Tell the trace of a request of its batches; its answer or its error follows."""
        if (trace := self._pending[number].trace) is not None:
            trace.batched(batches)

    def failed(self, number: int, text: bytes) -> None:
        """Fail a request with the error that `error_text` encoded."""
        request = self._pending[number]
        if not request.done():
            request.set_exception(error_from_text(text))

    def released(self, number: int) -> None:
        """Free the slots of a request that failed or was cancelled."""
        self._slots.release(self._pending.pop(number).slots)

    def _cancel(self, number: int) -> None:
        if self._send is not None:
            self._send(cancel_record(self._model, number))

    def _count_answered(self, _: object) -> None:
        self._unanswered -= 1
        self._end_drain()


class _RemoteRequest(asyncio.Future[BatchedRows]):
    """A request under way: the very future that its caller awaits."""

    __slots__ = ("on_cancel", "slots", "trace")

    def __init__(self, slots: list[int], on_cancel: Callable[[], None], trace: TracedRequest | None) -> None:
        super().__init__()
        self.slots = slots
        self.on_cancel = on_cancel
        self.trace = trace

    def cancel(self, msg: object = None) -> bool:
        """Cancel as `asyncio.Future.cancel` does, and notify the backend; the slots are freed when it releases them."""
        if not super().cancel(msg):
            return False
        self.on_cancel()
        return True


def _lost() -> BackendLostError:
    return BackendLostError("the process that computes has ended and is being started again; send the request again")
