"""A worker's and the backend's end of a batcher, joined in one process; the backend's calls are made by hand."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.batching.admission import Admission, Ready
from fuseline.serve.batching.batcher import Batcher, BatchStats
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.requests import ANYONE, BULK, BatchedRows, Caller, Row
from fuseline.serve.errors import (
    BackendError,
    BackendLostError,
    DeadlineError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.tracing.otel_tracer import OtelTracer
from fuseline.serve.workers.arena import Arena, ArenaShape
from fuseline.serve.workers.backend_link import BackendConnection
from fuseline.serve.workers.error_text import error_from_text, text_from_error
from fuseline.serve.workers.record_buffer import RecordBuffer
from fuseline.serve.workers.remote_batcher import RemoteBatcher
from fuseline.serve.workers.remote_requests import RemoteRequests
from fuseline.serve.workers.wire_format import memory_record
from fuseline.serve.workers.worker_memory import WorkerMemory
from tests.fakes.clock import Clock
from tests.fakes.executor import ManualExecutor
from tests.serve.batching.batchers import batcher_of

ROW_SHAPE = (2, 2, 1)
CLASSES = 3
BUCKETS = (1, 2, 4)
MODEL = 7
"""The number that the backend gave the model."""


def logits_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tells rows apart."""
    return pixels.reshape(len(pixels), -1)[:, :CLASSES].astype(np.float32)


def row(value: int) -> NDArray[np.uint8]:
    return np.arange(value, value + 4, dtype=np.uint8).reshape(ROW_SHAPE)


async def settle() -> None:
    """Let everything that is under way arrive, except a call of the backend."""
    for _ in range(40):
        await asyncio.sleep(0)


class Transport:
    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self.write = deliver


class Ends:
    """A worker's end of some batchers, by model number, in place of a `BackendLink`."""

    def __init__(self, batchers: dict[int, RemoteBatcher]) -> None:
        self.batchers = batchers
        self.batcher = batchers.__getitem__
        self.forgotten: list[int] = []

    def forget(self, number: int) -> None:
        self.forgotten.append(number)

    def lose(self) -> None:
        for batcher in self.batchers.values():
            batcher.disconnect()


def connected(
    batchers: dict[int, RemoteBatcher],
    open_model: Callable[[int, int], tuple[Batcher, Arena] | None],
    deliver: Callable[[BackendConnection, bytes], None] = BackendConnection.data_received,
    tracer: OtelTracer | None = None,
    feed: FeedSource | None = None,
) -> tuple[Ends, BackendConnection, RemoteRequests]:
    """Join a worker with batchers of these numbers, and the backend's end of it, which knows the models already."""
    ends = Ends(batchers)
    connection = BackendConnection(ends)  # type: ignore[arg-type]
    requests = RemoteRequests(open_model, partial(deliver, connection), lambda: None, tracer, feed)
    connection.connection_made(Transport(requests.receive))  # type: ignore[arg-type]
    for number, batcher in batchers.items():
        requests.receive(memory_record(number, 0))
        batcher.connect(number, RecordBuffer(requests.receive).write)
    return ends, connection, requests


def admission_of(max_queue_rows: int) -> Admission:
    """An admission like the backend's, before anything was measured."""
    policy = BatchPolicy(BUCKETS, max_queue_rows=max_queue_rows, max_queue_ms=1000.0)
    return Admission(BatchProfile(BUCKETS, {}, 0.0), policy)


class JoinedWorkers:
    """Several workers of one batcher."""

    def __init__(
        self,
        workers: int = 1,
        *,
        max_queue_rows: int = 8,
        slots: int = 16,
        row_dtype: type[np.generic] = np.uint8,
        tracer: OtelTracer | None = None,
        feed: FeedSource | None = None,
    ) -> None:
        """`tracer` and `feed` are the backend's."""
        self.tracer = tracer
        self.feed = feed
        self.clock = Clock()
        self.executor = ManualExecutor()
        self.infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = logits_of
        self.batcher = batcher_of(
            self._infer,
            row_shape=ROW_SHAPE,
            row_dtype=row_dtype,
            buckets=BUCKETS,
            max_queue_rows=max_queue_rows,
            clock=self.clock,
            on_batch=self._on_batch,
            executor=self.executor,
        )
        self.remotes: list[RemoteBatcher] = []
        self.held: list[tuple[BackendConnection, bytes]] | None = None
        """What the backend has sent and no worker has read, while it is a list."""
        self.requests: list[RemoteRequests] = []
        self.connections: list[BackendConnection] = []
        self.ends: list[Ends] = []
        for _ in range(workers):
            shape = ArenaShape(ROW_SHAPE, CLASSES, slots, np.dtype(row_dtype))
            memory = WorkerMemory()
            # Two mappings of one memory, as two processes have.
            offset, arena = memory.take(shape)
            other = self.batcher, Arena(memory.file, shape, offset)
            memory.close()
            remote = RemoteBatcher(arena, admission_of(max_queue_rows), clock=self.clock)
            ends, connection, requests = connected(
                {MODEL: remote}, lambda _number, _offset, other=other: other, self._deliver, tracer, feed
            )
            self.remotes.append(remote)
            self.requests.append(requests)
            self.connections.append(connection)
            self.ends.append(ends)

    def _infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.infer(pixels)

    def _on_batch(self, stats: BatchStats) -> None:
        if self.tracer is not None:
            self.tracer.count_batch("m", stats)
        if self.feed is not None:
            self.feed.note_batch("m", "1", 1, stats)
        for requests in self.requests:
            requests.batch_finished(MODEL)

    def _deliver(self, connection: BackendConnection, data: bytes) -> None:
        if self.held is None:
            connection.data_received(data)
        else:
            self.held.append((connection, data))

    async def run_batch(self) -> None:
        """Have the backend's next call made."""
        await settle()
        await asyncio.to_thread(self.executor.make_next_call)
        await settle()


async def test_the_answer_is_the_backends_and_frees_its_slots() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    request = remote.submit([row(10), row(20)])
    assert remote.taken_slots == 2
    await joined.run_batch()
    batched = await request
    assert batched.logits.tolist() == [[10, 11, 12], [20, 21, 22]]
    assert batched.logits.dtype == np.float32
    assert batched.batch_rows == 2
    assert remote.taken_slots == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
async def test_rows_of_floats_cross_as_they_are_and_pixels_are_refused(dtype: type[np.generic]) -> None:
    joined = JoinedWorkers(row_dtype=dtype)
    rows = np.array([[0.1, -2.5, 1e4, 5e-5], [np.nan, 3, -0.25, 7]]).astype(dtype).reshape(2, *ROW_SHAPE)
    request = joined.remotes[0].submit(list(rows))
    await joined.run_batch()
    np.testing.assert_array_equal((await request).logits, rows.reshape(2, -1)[:, :CLASSES].astype(np.float32))
    with pytest.raises(RequestError, match=f"a row is uint8 .* expected {np.dtype(dtype)}"):
        joined.remotes[0].submit([row(1)])
    assert joined.remotes[0].taken_slots == 0


async def test_the_backend_learns_who_sends_a_request_and_that_two_workers_have_the_same_client() -> None:
    joined = JoinedWorkers(workers=2)
    callers: list[Caller] = []
    submit = joined.batcher.submit

    def noting(rows: Sequence[Row], *, caller: Caller = ANYONE, **more: Any) -> asyncio.Future[BatchedRows]:
        callers.append(caller)
        return submit(rows, caller=caller, **more)

    joined.batcher.submit = noting  # type: ignore[method-assign]
    senders = [Caller("10.0.0.7", 2), Caller("10.0.0.7", 2), Caller("10.0.0.8", 1)]
    requests = [
        joined.remotes[worker].submit([row(1)], caller=caller)
        for worker, caller in zip((0, 1, 1), senders, strict=True)
    ]
    await joined.run_batch()
    await asyncio.gather(*requests)
    first, second, third = callers
    assert first == second
    assert first.client != third.client
    assert [caller.priority for caller in callers] == [2, 2, 1]


async def test_rows_may_change_once_they_are_submitted() -> None:
    joined = JoinedWorkers()
    pixels = row(10).copy()
    request = joined.remotes[0].submit([pixels])
    pixels[:] = 0
    await joined.run_batch()
    assert (await request).logits.tolist() == [[10, 11, 12]]


async def test_requests_of_several_workers_share_a_batch_and_those_of_one_its_logits() -> None:
    joined = JoinedWorkers(workers=2)
    first, second = joined.remotes[0].submit([row(1)]), joined.remotes[0].submit([row(2)])
    other = joined.remotes[1].submit([row(3), row(4)])
    await joined.run_batch()
    answers = [await request for request in (first, second, other)]
    assert [answer.batch_rows for answer in answers] == [4, 4, 4]
    assert answers[0].shared_logits is answers[1].shared_logits
    assert [answer.first_row for answer in answers] == [0, 1, 0]
    for answer in answers:
        rows = slice(answer.first_row, answer.first_row + len(answer.logits))
        assert (answer.shared_logits[rows] == answer.logits).all()
    assert answers[2].logits.tolist() == [[3, 4, 5], [4, 5, 6]]


async def test_models_on_one_connection_are_told_apart_by_their_numbers() -> None:
    executor, shape, memory = ManualExecutor(), ArenaShape(ROW_SHAPE, CLASSES, 16), WorkerMemory()
    remotes, served = {}, {}
    for number in (2, 5):
        offset, arena = memory.take(shape)
        remotes[number] = RemoteBatcher(arena, admission_of(8))
        batcher = batcher_of(
            lambda pixels, number=number: number * logits_of(pixels),
            row_shape=ROW_SHAPE,
            buckets=BUCKETS,
            max_queue_rows=8,
            executor=executor,
        )
        served[number] = batcher, Arena(memory.file, shape, offset)
    memory.close()
    ends, _, _ = connected(remotes, lambda number, _: served[number])
    answers = [remotes[number].submit([row(1)]) for number in (5, 2)]
    await settle()
    while executor.calls:
        await asyncio.to_thread(executor.make_next_call)
    assert [(await answer).logits.tolist() for answer in answers] == [[[5, 10, 15]], [[2, 4, 6]]]
    draining = asyncio.create_task(remotes[5].drain())
    await settle()
    assert draining.done()
    assert ends.forgotten == [5]


async def test_a_drained_model_is_forgotten_once_the_backend_reads_no_row_of_it() -> None:
    """Whoever waits is answered, and the slots of one that was cancelled while it ran are released before."""
    joined = JoinedWorkers(workers=2)
    remote, (ends, other) = joined.remotes[0], joined.ends
    kept, dropped = remote.submit([row(1)]), remote.submit([row(2)])
    await settle()
    draining = asyncio.create_task(remote.drain())
    dropped.cancel()
    await settle()
    assert ends.forgotten == []
    await joined.run_batch()
    await draining
    assert (await kept).logits.tolist() == [[1, 2, 3]]
    assert remote.taken_slots == 0
    assert ends.forgotten == [MODEL]
    assert other.forgotten == []
    again = joined.remotes[1].submit([row(3)])
    await joined.run_batch()
    assert (await again).logits.tolist() == [[3, 4, 5]]
    assert ends.forgotten == [MODEL]


async def test_a_drain_waits_for_a_request_whose_images_are_being_decoded() -> None:
    joined = JoinedWorkers()
    remote, ends = joined.remotes[0], joined.ends[0]
    submitted, released = remote.reserve(1, ready=ready()), remote.reserve(2, ready=ready())
    draining = asyncio.create_task(remote.drain())
    await settle()
    with pytest.raises(ShuttingDownError):
        remote.reserve(1, ready=ready())
    request = remote.submit([row(1)], reservation=submitted)
    await joined.run_batch()
    assert (await request).logits.tolist() == [[1, 2, 3]]
    assert not draining.done()
    assert ends.forgotten == []
    released.release()
    await draining
    await settle()
    assert ends.forgotten == [MODEL]


async def test_a_batcher_that_retires_takes_what_has_found_its_model_before() -> None:
    """A stream finds the model of a request in one turn of the event loop, and reserves room in the next."""
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    retiring = asyncio.create_task(remote.retire())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request = remote.submit([row(1)], reservation=remote.reserve(1, ready=ready()))
    await joined.run_batch()
    assert (await request).logits.tolist() == [[1, 2, 3]]
    await retiring
    with pytest.raises(ShuttingDownError):
        remote.reserve(1, ready=ready())


async def test_what_comes_for_a_model_that_has_gone_is_unavailable_and_keeps_no_slot() -> None:
    """From a worker that was stopped for so long that it was waited for no more."""
    shape, memory = ArenaShape(ROW_SHAPE, CLASSES, 16), WorkerMemory()
    remote = RemoteBatcher(memory.take(shape)[1], admission_of(8))
    memory.close()
    ends, _, _ = connected({MODEL: remote}, lambda _number, _offset: None)
    request, cancelled = remote.submit([row(1)]), remote.submit([row(1)])
    cancelled.cancel()
    with pytest.raises(BackendLostError, match="unloaded while this worker did not respond; send the request again"):
        await request
    await settle()
    assert remote.taken_slots == 0
    await remote.drain()
    await settle()
    assert ends.forgotten == [MODEL]


async def test_the_queues_bound_is_one_for_all_workers_and_a_refusal_keeps_no_slot() -> None:
    joined = JoinedWorkers(workers=2, max_queue_rows=4)
    running = joined.remotes[0].submit([row(1)])
    await settle()
    queued = joined.remotes[0].submit([row(2)] * 3)
    await settle()
    assert joined.remotes[1].queued_rows == 0  # told with the next record of this worker, or the next batch
    refused = joined.remotes[1].submit([row(3)] * 2)
    with pytest.raises(OverloadedError, match="3 rows of at most 4 are queued, no room for 2 more"):
        await refused
    assert joined.remotes[1].queued_rows == 3
    await settle()
    assert joined.remotes[1].taken_slots == 0
    await joined.run_batch()
    await joined.run_batch()
    assert len((await running).logits) == 1
    assert len((await queued).logits) == 3
    assert [remote.queued_rows for remote in joined.remotes] == [0, 0]


async def test_without_a_free_slot_a_request_is_refused_at_once() -> None:
    joined = JoinedWorkers(slots=3)
    joined.remotes[0].submit([row(1)] * 2)
    with pytest.raises(OverloadedError, match="2 rows are under way in this process, no room for 2 more"):
        joined.remotes[0].submit([row(1)] * 2)
    await joined.run_batch()
    assert joined.remotes[0].submit([row(1)] * 3)


async def test_cancelled_in_the_queue_it_never_runs_and_its_slots_are_free_after_the_batch() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    running = remote.submit([row(1)])
    await settle()
    queued = remote.submit([row(2), row(3)])
    await settle()
    assert joined.batcher.queued_rows == 2
    queued.cancel()
    await settle()
    assert joined.batcher.queued_rows == 0
    await joined.run_batch()
    assert (await running).batch_rows == 1
    assert not joined.executor.calls
    assert remote.taken_slots == 0


async def test_cancelled_while_it_runs_its_slots_stay_taken_until_the_backend_reads_them_no_more() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    request = remote.submit([row(1), row(2)])
    await settle()
    request.cancel()
    await settle()
    assert remote.taken_slots == 2
    await joined.run_batch()
    assert remote.taken_slots == 0


async def test_a_cancellation_that_crosses_the_answer_frees_the_slots_once() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    request = remote.submit([row(1)])
    await settle()
    joined.held = []
    await joined.run_batch()
    request.cancel()
    await settle()
    ((connection, answer),), joined.held = joined.held, None
    assert remote.taken_slots == 1
    connection.data_received(answer)
    assert remote.taken_slots == 0
    again = remote.submit([row(9)])
    await joined.run_batch()
    assert (await again).logits.tolist() == [[9, 10, 11]]


async def test_one_whose_deadline_passes_in_the_queue_fails_and_its_slots_come_back() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    running = remote.submit([row(1)])
    await settle()
    late = remote.submit([row(2)], deadline=101.0)
    await settle()
    joined.clock.now = 102.0
    await joined.run_batch()
    with pytest.raises(DeadlineError, match="the deadline passed after 2000.0 ms in the queue"):
        await late
    await running
    assert remote.taken_slots == 0
    with pytest.raises(DeadlineError, match="passed 1000.0 ms ago"):
        remote.submit([row(1)], deadline=101.0)


async def test_a_failed_batch_is_one_error_with_the_id_under_which_the_backend_logged_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    joined = JoinedWorkers()

    def fail(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise OSError("the device fell off the bus")

    joined.infer = fail
    requests = [joined.remotes[0].submit([row(value)]) for value in (1, 2)]
    with caplog.at_level(logging.ERROR, "fuseline.serve.errors"):
        await joined.run_batch()
    ids = set()
    for request in requests:
        with pytest.raises(BackendError, match="raised OSError") as caught:
            await request
        ids.add(caught.value.error_id)
    assert len(ids) == 1
    assert len(caplog.records) == 1
    assert ids.pop() in caplog.text
    assert "fell off the bus" in caplog.text
    assert joined.remotes[0].taken_slots == 0
    joined.infer = logits_of
    again = joined.remotes[0].submit([row(5)])
    await joined.run_batch()
    assert (await again).logits.tolist() == [[5, 6, 7]]


async def test_when_the_backend_goes_everything_under_way_fails_at_once_and_the_slots_are_free() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    requests = [remote.submit([row(value)]) for value in (1, 2, 3)]
    requests[2].cancel()
    await settle()
    joined.connections[0].connection_lost(None)
    assert [request.done() for request in requests] == [True] * 3
    for request in requests[:2]:
        with pytest.raises(BackendLostError, match="send the request again"):
            await request
    assert remote.taken_slots == 0
    with pytest.raises(BackendLostError):
        remote.submit([row(1)])
    await remote.drain()


async def test_when_a_worker_goes_its_rows_leave_the_queue_and_others_are_answered() -> None:
    joined = JoinedWorkers(workers=2)
    kept = joined.remotes[1].submit([row(1)])
    await settle()
    lost = joined.remotes[0].submit([row(2)] * 3)
    other = joined.remotes[1].submit([row(3)])
    await settle()
    assert joined.batcher.queued_rows == 4
    joined.requests[0].disconnect()
    await settle()
    assert joined.batcher.queued_rows == 1
    await joined.run_batch()
    await joined.run_batch()
    assert (await kept).logits.tolist() == [[1, 2, 3]]
    assert (await other).batch_rows == 1
    assert not lost.done()


async def test_a_drain_waits_for_what_was_admitted_and_refuses_the_rest() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]
    request = remote.submit([row(1)])
    draining = asyncio.create_task(remote.drain())
    await settle()
    assert not draining.done()
    with pytest.raises(ShuttingDownError):
        remote.submit([row(2)])
    await joined.run_batch()
    await draining
    assert (await request).logits.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "rows", [[], [np.zeros((2, 2), np.uint8)], [np.zeros((1, 2, 1), np.uint8)], [np.zeros(ROW_SHAPE, np.float32)]]
)
async def test_rows_of_another_shape_or_dtype_are_refused_and_take_no_slot(rows: list[Any]) -> None:
    joined = JoinedWorkers()
    with pytest.raises(RequestError):
        joined.remotes[0].submit(rows)
    assert joined.remotes[0].taken_slots == 0


def ready(seconds: float = 0.0) -> Ready:
    return Ready(seconds, seconds)


async def test_what_one_worker_promises_counts_as_queued_for_all() -> None:
    joined = JoinedWorkers(workers=2, max_queue_rows=4)
    first, second = joined.remotes
    reservation = first.reserve(3, ready=ready())
    # The backend looks at each worker's promises whenever that one sends, or a batch ends.
    running = first.submit([row(1)])
    await settle()
    with pytest.raises(OverloadedError, match="3 rows of at most 4 are queued, no room for 2 more"):
        await second.submit([row(2)] * 2)
    await settle()
    with pytest.raises(OverloadedError, match="3 rows of at most 4 are queued, no room for 2 more"):
        second.reserve(2, ready=ready())
    request = first.submit([row(3)] * 3, reservation=reservation)
    await joined.run_batch()
    await joined.run_batch()
    assert len((await request).logits) == 3
    assert (await running).logits.tolist() == [[1, 2, 3]]
    assert second.reserve(4, ready=ready())


async def test_a_worker_admits_by_what_the_backend_has_measured() -> None:
    joined = JoinedWorkers()
    remote = joined.remotes[0]

    def slow(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        joined.clock.now += 0.2
        return logits_of(pixels)

    joined.infer = slow
    # Nothing is measured yet, so everything is admitted.
    remote.reserve(1, deadline=joined.clock.now + 0.001, ready=ready()).release()
    first = remote.submit([row(1)])
    await joined.run_batch()
    await first
    with pytest.raises(DeadlineError, match="an idle server takes 2"):
        remote.reserve(1, deadline=joined.clock.now + 0.1, ready=ready())
    with pytest.raises(DeadlineError, match="an idle server takes 5"):
        remote.reserve(1, deadline=joined.clock.now + 0.4, ready=ready(0.3))
    remote.reserve(1, deadline=joined.clock.now + 0.3, ready=ready()).release()


async def test_a_promise_is_given_back_when_the_backend_has_gone() -> None:
    joined = JoinedWorkers(max_queue_rows=4)
    remote = joined.remotes[0]
    reservation = remote.reserve(4, ready=ready())
    remote.disconnect()
    with pytest.raises(BackendLostError):
        remote.submit([row(1)] * 4, reservation=reservation)
    remote.connect(MODEL, lambda _: None)
    assert remote.reserve(4, ready=ready())


async def test_when_a_worker_goes_its_promises_go_too() -> None:
    joined = JoinedWorkers(workers=2, max_queue_rows=4)
    joined.remotes[0].reserve(3, ready=ready())
    joined.remotes[0].submit([row(1)])
    await settle()
    assert joined.batcher.load(joined.clock.now).waiting_rows == 3
    joined.requests[0].disconnect()
    await joined.run_batch()
    assert joined.batcher.load(joined.clock.now).waiting_rows == 0


async def test_a_refusal_keeps_its_delay_on_the_way_to_the_worker() -> None:
    error = error_from_text(text_from_error(OverloadedError("too many", 0.25)))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 0.25


async def test_a_worker_admits_by_what_starts_before_a_request() -> None:
    """20 rows of a large request and 8 bulk ones wait behind a batch: eight batches of 0.4 s in all."""
    joined = JoinedWorkers(max_queue_rows=64, slots=64)
    remote = joined.remotes[0]
    joined.batcher._pool.profile.table[:] = [0.1, 0.2, 0.4]
    remote.submit([row(1)] * 4)
    await settle()
    remote.submit([row(1)] * 20)
    remote.submit([row(1)] * 8, caller=Caller("", BULK))
    await settle()
    soon = joined.clock.now + 1.5
    remote.reserve(1, deadline=soon, ready=ready()).release()
    for count, caller in ((8, ANYONE), (1, Caller("", BULK))):
        with pytest.raises(OverloadedError):
            remote.reserve(count, deadline=soon, ready=ready(), caller=caller)
    remote.disconnect()
