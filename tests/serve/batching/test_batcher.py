import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fuseline.serve.batching.admission import Ready
from fuseline.serve.errors import (
    BackendError,
    BackendUnavailableError,
    DeadlineError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
)
from tests.fakes.clock import Clock
from tests.fakes.held_backend import PATIENCE_SECONDS, ROW_SHAPE, HeldBackend, logits_of, row, rows
from tests.serve.batching.batchers import batcher_of


@pytest.fixture
def backend():
    backend = HeldBackend()
    yield backend
    backend.release_all()


def make(backend, **options):
    return batcher_of(backend, row_shape=ROW_SHAPE, **({"buckets": (1, 2, 4), "max_queue_rows": 16} | options))


async def held_batcher(backend, **options):
    """A batcher whose backend is busy with row 99; its future is the second result."""
    batcher = make(backend, **options)
    first = batcher.submit([row(99)])
    await backend.entered()
    return batcher, first


async def settled(*futures):
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*futures, return_exceptions=True)


async def loop_turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_idle_backend_takes_what_arrived_in_one_turn_at_once(backend):
    batcher = make(backend)
    futures = [batcher.submit([row(number)]) for number in (1, 2, 3)]
    assert (batcher.queued_rows, batcher.running_rows) == (3, 0)
    await backend.entered()
    assert (batcher.queued_rows, batcher.running_rows) == (0, 3)
    backend.release()
    for number, answer in zip((1, 2, 3), await settled(*futures), strict=True):
        np.testing.assert_array_equal(answer.logits, logits_of(number))
        assert answer.batch_rows == 3
    await batcher.drain()


async def test_next_batch_forms_while_the_backend_is_busy(backend):
    batcher, first = await held_batcher(backend)
    waiting = [batcher.submit([row(1)])]
    await loop_turns()
    waiting.append(batcher.submit(rows(2, 3)))
    assert batcher.queued_rows == 3
    backend.release_all()
    await settled(first, *waiting)
    assert backend.batches == [[99], [1, 2, 3, 0]]
    await batcher.drain()


async def test_batch_is_padded_with_zeros_to_the_smallest_bucket_and_padding_never_leaks(backend):
    batcher = make(backend, buckets=(8, 3))
    full = batcher.submit(rows(*range(10, 18)))
    await backend.entered()
    padded = batcher.submit(rows(1, 2))
    large = batcher.submit(rows(3, 4))
    backend.release_all()
    answers = await settled(full, padded, large)
    assert backend.batches == [list(range(10, 18)), [1, 2, 3, 4, 0, 0, 0, 0]]
    for answer, numbers in zip(answers, [range(10, 18), (1, 2), (3, 4)], strict=True):
        np.testing.assert_array_equal(answer.logits, logits_of(*numbers))
    assert answers[1].batch_rows == 4
    last = batcher.submit([row(5)])
    np.testing.assert_array_equal((await settled(last))[0].logits, logits_of(5))
    assert backend.batches[-1] == [5, 0, 0]
    await batcher.drain()


async def test_large_request_is_split_and_joined_in_row_order(backend):
    batcher, first = await held_batcher(backend)
    small = batcher.submit([row(1)])
    large = batcher.submit(rows(*range(2, 12)))
    after = batcher.submit([row(50)])
    backend.release_all()
    _, _, answer, _ = await settled(first, small, large, after)
    assert backend.batches == [[99], [1, 2, 3, 50], [4, 5, 6, 7], [8, 9, 10, 11]]
    np.testing.assert_array_equal(answer.logits, logits_of(*range(2, 12)))
    np.testing.assert_array_equal(after.result().logits, logits_of(50))
    assert answer.batch_rows == 4
    await batcher.drain()


async def test_answer_and_stats_say_where_the_time_went():
    clock, stats = Clock(), []

    def infer(pixels):
        clock.now += 0.010 * len(pixels)
        return np.zeros((len(pixels), 3), np.float32)

    batcher = make(infer, buckets=(2, 4), clock=clock, on_batch=stats.append)
    small, large = batcher.submit([row(1)]), batcher.submit(rows(*range(6)))
    clock.now += 0.005
    await settled(small, large)
    assert small.result().queue_ms == pytest.approx(5)
    assert small.result().compute_ms == pytest.approx(40)
    assert large.result().queue_ms == pytest.approx(45)
    assert large.result().compute_ms == pytest.approx(80)
    assert large.result().batch_rows == 4
    await batcher.drain()
    assert [(s.rows, s.bucket, s.failed) for s in stats] == [(4, 4, False), (3, 4, False)]
    assert [s.queue_ms for s in stats] == pytest.approx([5, 45])
    assert [s.compute_ms for s in stats] == pytest.approx([40, 40])


async def test_queue_is_bounded_in_rows(backend):
    batcher, first = await held_batcher(backend, max_queue_rows=5)
    waiting = batcher.submit(rows(1, 2, 3))
    with pytest.raises(OverloadedError, match="3 rows of at most 5 are queued, no room for 3 more"):
        batcher.submit(rows(4, 5, 6))
    fits = batcher.submit(rows(4, 5))
    with pytest.raises(OverloadedError, match="5 rows of at most 5"):
        batcher.submit([row(6)])
    backend.release_all()
    assert not [e for e in await settled(first, waiting, fits) if isinstance(e, Exception)]
    await batcher.drain()


async def test_request_above_the_whole_queue_is_refused_even_when_idle(backend):
    batcher = make(backend, max_queue_rows=5)
    with pytest.raises(OverloadedError, match="6 rows can never be queued, the queue's limit is 5 rows; send it in"):
        batcher.submit(rows(*range(6)))
    await batcher.drain()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([], "no rows"),
        ([np.zeros((3, 2), np.uint8)], r"uint8 of shape \(3, 2\), expected uint8 of shape \(2, 3\)"),
        ([row(1), np.zeros(ROW_SHAPE, np.float32)], "float32 of shape"),
        ([b"123456"], "a row is a bytes"),
    ],
)
async def test_wrong_rows_are_refused(backend, wrong, named):
    batcher = make(backend)
    with pytest.raises(RequestError, match=named):
        batcher.submit(wrong)
    assert batcher.queued_rows == 0
    await batcher.drain()


async def test_non_contiguous_rows_and_one_array_of_rows_are_taken(backend):
    backend.release_all()
    batcher = make(backend)
    transposed = batcher.submit([np.full(ROW_SHAPE[::-1], 7, np.uint8).T])
    array = batcher.submit(np.stack(rows(1, 2)))
    await settled(transposed, array)
    np.testing.assert_array_equal(transposed.result().logits, logits_of(7))
    np.testing.assert_array_equal(array.result().logits, logits_of(1, 2))
    await batcher.drain()


async def test_cancelled_while_queued_never_runs_and_makes_room_at_once(backend):
    batcher, first = await held_batcher(backend, max_queue_rows=4)
    kept, dropped = batcher.submit([row(1)]), batcher.submit(rows(2, 3, 4))
    assert dropped.cancel()
    assert not dropped.cancel()
    assert batcher.queued_rows == 1
    late = batcher.submit(rows(5, 6, 7))
    backend.release_all()
    await settled(first, kept, late)
    assert backend.batches == [[99], [1, 5, 6, 7]]
    await batcher.drain()


async def test_cancelling_the_awaiting_task_drops_the_request(backend):
    batcher, first = await held_batcher(backend)

    async def caller():
        return await batcher.submit(rows(1, 2))

    task = asyncio.create_task(caller())
    await loop_turns()
    assert batcher.queued_rows == 2
    task.cancel()
    await settled(task)
    assert batcher.queued_rows == 0
    backend.release_all()
    await batcher.drain()
    assert first.done()
    assert backend.batches == [[99]]


async def test_cancelled_in_the_middle_of_a_batch_harms_nobody_else(backend):
    batcher = make(backend)
    before, dropped, after = (batcher.submit([row(number)]) for number in (1, 2, 3))
    await backend.entered()
    dropped.cancel()
    backend.release()
    await settled(before, after)
    assert dropped.cancelled()
    np.testing.assert_array_equal(before.result().logits, logits_of(1))
    np.testing.assert_array_equal(after.result().logits, logits_of(3))
    await batcher.drain()


async def test_split_request_cancelled_halfway_does_not_run_its_rest(backend):
    batcher = make(backend)
    large = batcher.submit(rows(*range(1, 12)))
    await backend.entered()
    after = batcher.submit([row(50)])
    assert (batcher.running_rows, batcher.queued_rows) == (4, 8)
    large.cancel()
    assert batcher.queued_rows == 1
    backend.release_all()
    await settled(after)
    assert backend.batches == [[1, 2, 3, 4], [50]]
    await batcher.drain()


async def test_backend_that_raises_fails_its_batch_only(backend):
    stats = []
    batcher = make(backend, on_batch=stats.append)
    fault = ValueError("out of memory")

    def misbehave(_):
        raise fault

    backend.misbehave = misbehave
    doomed = [batcher.submit([row(1)]), batcher.submit(rows(2, 3))]
    await backend.entered()
    following = batcher.submit([row(4)])
    backend.release_all()
    errors = await settled(*doomed)
    assert [type(error) for error in errors] == [BackendError, BackendError]
    assert errors[0].__cause__ is fault
    assert "ValueError" in str(errors[0])
    np.testing.assert_array_equal((await settled(following))[0].logits, logits_of(4))
    await batcher.drain()
    assert [s.failed for s in stats] == [True, False]


async def test_fuseline_error_of_the_backend_is_kept(backend):
    batcher = make(backend)
    fault = BackendUnavailableError("the device was lost")

    def misbehave(_):
        raise fault

    backend.misbehave = misbehave
    backend.release_all()
    assert await settled(batcher.submit([row(1)])) == [fault]
    await batcher.drain()


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration()])
async def test_no_exception_of_the_backend_ends_the_thread(backend, fault):
    def misbehave(_):
        raise fault

    backend.misbehave = misbehave
    backend.release_all()
    batcher = make(backend)
    (error,) = await settled(batcher.submit([row(1)]))
    assert type(error) is BackendError
    assert error.__cause__ is fault
    np.testing.assert_array_equal((await settled(batcher.submit([row(2)])))[0].logits, logits_of(2))
    assert len(backend.threads) == 1
    await batcher.drain()


async def test_failed_batch_drops_the_rest_of_its_split_request(backend):
    def misbehave(_):
        raise RuntimeError

    backend.misbehave = misbehave
    batcher = make(backend)
    large = batcher.submit(rows(*range(1, 12)))
    await backend.entered()
    after = batcher.submit([row(50)])
    backend.release_all()
    errors = await settled(large, after)
    assert type(errors[0]) is BackendError
    np.testing.assert_array_equal(after.result().logits, logits_of(50))
    assert backend.batches == [[1, 2, 3, 4], [50]]
    await batcher.drain()


@pytest.mark.parametrize(
    ("misbehave", "named"),
    [
        (lambda pixels: np.zeros((len(pixels) - 1, 2), np.float32), r"float32 of shape \(1, 2\)"),
        (lambda pixels: np.zeros((len(pixels) + 1, 2), np.float32), r"float32 of shape \(3, 2\)"),
        (lambda pixels: np.zeros((len(pixels), 2, 1), np.float32), r"shape \(2, 2, 1\)"),
        (lambda pixels: np.zeros(len(pixels), np.float32), r"shape \(2,\)"),
        (lambda pixels: np.zeros((len(pixels), 2), np.float64), "float64"),
        (lambda pixels: np.zeros((len(pixels), 5), np.float32), r"expected float32 of shape \(2, 2\)"),
        (lambda pixels: None, "NoneType"),
    ],
)
async def test_wrong_output_fails_the_batch_and_nobody_gets_anothers_rows(backend, misbehave, named):
    backend.release_all()
    batcher = make(backend)
    await settled(batcher.submit([row(9)]))
    backend.misbehave = misbehave
    errors = await settled(batcher.submit([row(1)]), batcher.submit([row(2)]))
    for error in errors:
        assert type(error) is BackendError
        with pytest.raises(BackendError, match=f"the backend returned .*{named}"):
            raise error
    np.testing.assert_array_equal((await settled(batcher.submit([row(3)])))[0].logits, logits_of(3))
    await batcher.drain()


async def test_thread_that_cannot_be_used_fails_every_request():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    batcher = make(HeldBackend(), executor=executor)
    errors = await settled(*(batcher.submit(rows(1, 2, 3)) for _ in range(4)))
    assert [type(error) for error in errors] == [BackendError] * 4
    await batcher.drain()


async def test_drain_runs_everything_queued_then_ends_the_thread(backend):
    batcher, first = await held_batcher(backend)
    waiting = [batcher.submit(rows(number, number)) for number in range(1, 6)]
    drains = [asyncio.create_task(batcher.drain()) for _ in range(2)]
    await loop_turns()
    assert not any(drain.done() for drain in drains)
    with pytest.raises(ShuttingDownError, match="shutting down"):
        batcher.submit([row(1)])
    backend.release_all()
    await settled(*drains)
    for number, future in enumerate(waiting, start=1):
        np.testing.assert_array_equal(future.result().logits, logits_of(number, number))
    assert first.done()
    assert (batcher.queued_rows, batcher.running_rows) == (0, 0)
    assert not any(thread.is_alive() for thread in backend.threads)
    await batcher.drain()


async def test_drain_returns_when_all_that_is_left_is_cancelled(backend):
    batcher = make(backend, max_delay_ms=3_600_000)
    future = batcher.submit([row(1)])
    await loop_turns()
    future.cancel()
    await settled(batcher.drain())
    assert backend.batches == []


async def test_drain_waits_for_the_running_batch_of_a_cancelled_request(backend):
    batcher, first = await held_batcher(backend)
    first.cancel()
    drain = asyncio.create_task(batcher.drain())
    await loop_turns()
    assert not drain.done()
    backend.release()
    assert await settled(drain) == [None]


async def test_injected_executor_is_left_running(backend):
    backend.release_all()
    with ThreadPoolExecutor(1) as executor:
        batcher = make(backend, executor=executor)
        await settled(batcher.submit([row(1)]))
        await batcher.drain()
        assert executor.submit(int).result() == 0


async def test_expired_in_the_queue_is_dropped_before_a_batch_forms(backend):
    clock = Clock()
    batcher, first = await held_batcher(backend, clock=clock)
    expires, stays = batcher.submit([row(1)], deadline=clock.now + 1), batcher.submit([row(2)], deadline=clock.now + 9)
    clock.now += 1
    backend.release_all()
    answers = await settled(first, expires, stays)
    assert type(answers[1]) is DeadlineError
    assert "1000.0 ms" in str(answers[1])
    assert backend.batches == [[99], [2]]
    await batcher.drain()


async def test_expired_requests_make_room(backend):
    clock = Clock()
    batcher, first = await held_batcher(backend, clock=clock, max_queue_rows=3)
    expires = batcher.submit(rows(1, 2, 3), deadline=clock.now + 1)
    clock.now += 1
    fits = batcher.submit(rows(4, 5, 6))
    backend.release_all()
    answers = await settled(first, expires, fits)
    assert type(answers[1]) is DeadlineError
    np.testing.assert_array_equal(fits.result().logits, logits_of(4, 5, 6))
    await batcher.drain()


async def test_split_request_that_expires_halfway_does_not_run_its_rest(backend):
    clock = Clock()
    batcher = make(backend, clock=clock)
    large = batcher.submit(rows(*range(1, 9)), deadline=clock.now + 1)
    await backend.entered()
    clock.now += 2
    backend.release_all()
    assert type((await settled(large))[0]) is DeadlineError
    await batcher.drain()
    assert backend.batches == [[1, 2, 3, 4]]


async def test_passed_deadline_is_refused_at_once_and_an_unmeasured_one_admitted(backend):
    clock = Clock()
    batcher = make(backend, clock=clock)
    with pytest.raises(DeadlineError, match=r"passed 500.0 ms ago"):
        batcher.submit([row(1)], deadline=clock.now - 0.5)
    with pytest.raises(DeadlineError):
        batcher.submit([row(1)], deadline=clock.now)
    admitted = batcher.submit([row(1)], deadline=clock.now + 1e-6)
    backend.release_all()
    np.testing.assert_array_equal((await settled(admitted))[0].logits, logits_of(1))
    await batcher.drain()


SECONDS_PER_BUCKET = {1: 1.0, 2: 1.5, 4: 2.0}


async def test_deadline_that_the_profile_cannot_meet_is_refused_at_once(backend):
    clock = Clock()
    batcher, first = await held_batcher(backend, clock=clock, seconds_per_bucket=SECONDS_PER_BUCKET)
    clock.now += 0.25
    waiting = batcher.submit(rows(1, 2, 3))
    # 0.75 s of the running batch, 2.0 s of a full batch, 1.0 s of a batch of one row, and the way to the caller.
    with pytest.raises(OverloadedError, match=r"the answer takes 3752.0 ms with 4 rows ahead") as refused:
        batcher.submit(rows(4, 5), deadline=clock.now + 3.75)
    assert refused.value.retry_after_s == pytest.approx(0.002)
    # Two rows take 1.5 s even if nobody is ahead.
    with pytest.raises(DeadlineError, match=r"an idle server takes 1502.0 ms for 2 rows"):
        batcher.submit(rows(4, 5), deadline=clock.now + 1.5)
    in_time = batcher.submit(rows(4, 5), deadline=clock.now + 3.7521)
    clock.now += 10
    in_time.cancel()
    backend.release_all()
    await settled(first, waiting)
    await batcher.drain()


async def test_overdue_running_batch_counts_as_about_to_end(backend):
    clock = Clock()
    batcher, first = await held_batcher(backend, clock=clock, seconds_per_bucket=SECONDS_PER_BUCKET)
    clock.now += 50
    in_time = batcher.submit([row(1)], deadline=clock.now + 2)
    backend.release_all()
    await settled(first, in_time)
    np.testing.assert_array_equal(in_time.result().logits, logits_of(1))
    await batcher.drain()


async def test_profile_learns_from_each_batch():
    clock = Clock()

    def infer(pixels):
        clock.now += 2.0
        return np.zeros((len(pixels), 3), np.float32)

    batcher = make(infer, clock=clock, seconds_per_bucket={1: 1.0})
    clock.now += 5
    await settled(batcher.submit([row(1)]))
    # The only batch for a while tells nearly all.
    with pytest.raises(DeadlineError):
        batcher.submit([row(1)], deadline=clock.now + 1.9)
    await settled(batcher.submit([row(1)], deadline=clock.now + 2.1))
    await settled(batcher.submit(rows(1, 2)))
    with pytest.raises(DeadlineError, match=r"takes 20\d\d\.\d ms"):
        batcher.submit(rows(1, 2), deadline=clock.now + 1.9)
    await batcher.drain()


async def test_stale_profile_is_tried_again_rather_than_refusing_forever():
    clock = Clock()
    backend = HeldBackend(held=False)

    def infer(pixels):
        clock.now += 1.0
        return backend(pixels)

    batcher = make(infer, clock=clock, seconds_per_bucket={1: 60.0})
    with pytest.raises(DeadlineError):
        batcher.submit([row(1)], deadline=clock.now + 2)
    clock.now += 1
    tried = batcher.submit([row(1)], deadline=clock.now + 2)
    with pytest.raises(DeadlineError):
        batcher.submit([row(2)], deadline=clock.now + 2)
    (answer,) = await settled(tried)
    np.testing.assert_array_equal(answer.logits, logits_of(1))
    # It took 1 s, and nothing else was measured for long.
    (answer,) = await settled(batcher.submit([row(3)], deadline=clock.now + 2))
    np.testing.assert_array_equal(answer.logits, logits_of(3))
    await batcher.drain()


async def test_delay_waits_for_a_full_batch_on_an_idle_backend(backend):
    backend.release_all()
    batcher = make(backend, max_delay_ms=3_600_000)
    futures = [batcher.submit([row(1)]), batcher.submit([row(2)])]
    await loop_turns()
    futures.append(batcher.submit([row(3)]))
    await loop_turns()
    assert (batcher.queued_rows, batcher.running_rows) == (3, 0)
    futures.append(batcher.submit([row(4)]))
    await settled(*futures)
    assert backend.batches == [[1, 2, 3, 4]]
    await batcher.drain()


async def test_delay_ends(backend):
    backend.release_all()
    batcher = make(backend, max_delay_ms=1)
    (answer,) = await settled(batcher.submit([row(1)]))
    assert answer.queue_ms >= 1
    await batcher.drain()


async def test_delay_never_costs_a_deadline(backend):
    backend.release_all()
    clock = Clock()
    batcher = make(backend, max_delay_ms=3_600_000, clock=clock, seconds_per_bucket={1: 1.0, 2: 1.0})
    patient = batcher.submit([row(1)])
    await loop_turns()
    assert batcher.queued_rows == 1
    urgent = batcher.submit([row(2)], deadline=clock.now + 1.00205)
    await settled(patient, urgent)
    assert backend.batches == [[1, 2]]
    await batcher.drain()


async def test_drain_cuts_the_delay_short(backend):
    backend.release_all()
    batcher = make(backend, max_delay_ms=3_600_000)
    future = batcher.submit([row(1)])
    await loop_turns()
    await settled(batcher.drain())
    np.testing.assert_array_equal(future.result().logits, logits_of(1))


def test_batch_that_outlives_its_event_loop_ends_quietly(backend):
    calls = []

    class RecordingExecutor(ThreadPoolExecutor):
        def submit(self, *call):
            calls.append(super().submit(*call))
            return calls[-1]

    with RecordingExecutor(1) as executor:
        asyncio.run(held_batcher(backend, executor=executor))
        backend.release_all()
    assert [call.exception() for call in calls] == [None]


async def test_batcher_that_is_dropped_ends_its_thread(backend):
    backend.release_all()
    batcher = make(backend)
    await settled(batcher.submit([row(1)]))
    (thread,) = backend.threads
    del batcher
    gc.collect()
    await asyncio.to_thread(thread.join, timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "wrong",
    [{"buckets": ()}, {"buckets": (0, 1)}, {"max_queue_rows": 0}, {"max_delay_ms": -1}],
)
def test_settings_that_make_no_sense_are_refused(backend, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(backend, **wrong)


async def test_padding_is_zeros_whatever_the_batches_before_held():
    seen = []

    def infer(pixels):
        seen.append(pixels.copy())
        return np.zeros((len(pixels), 1), np.float32)

    batcher = make(infer, buckets=(4, 8), max_queue_rows=8)
    sizes = (8, 1, 5, 3, 6, 4, 7)
    for size in sizes:
        await batcher.submit(rows(*[7] * size))
    await batcher.drain()
    for size, pixels in zip(sizes, seen, strict=True):
        assert (pixels[:size] == 7).all()
        assert not pixels[size:].any()


async def test_a_batch_that_is_fast_enough_is_computed_on_the_event_loop_and_a_slower_one_in_the_thread():
    backend = HeldBackend(held=False)
    batcher = make(backend, seconds_per_bucket={1: 0.0009, 2: 0.0009, 4: 0.02}, inline_below_ms=1.0, clock=Clock())
    for numbers, inline in (((1,), True), ((1, 2, 3), False), ((4, 5), True)):
        backend.threads.clear()
        future = batcher.submit(rows(*numbers))
        [answer] = await settled(future)
        np.testing.assert_array_equal(answer.logits, logits_of(*numbers))
        assert (threading.current_thread() in backend.threads) is inline
    await batcher.drain()


async def test_a_bucket_that_becomes_slow_leaves_the_event_loop():
    clock = Clock()
    backend = HeldBackend(held=False)
    batcher = make(backend, buckets=(1,), seconds_per_bucket={1: 0.0}, inline_below_ms=1.0, clock=clock)

    def slow(pixels):
        clock.now += 0.02
        return logits_of(*pixels[:, 0, 0].astype(int))

    backend.misbehave = slow
    await settled(batcher.submit(rows(1)))
    assert backend.threads == {threading.current_thread()}
    await settled(batcher.submit(rows(1)))
    assert len(backend.threads) == 2
    await batcher.drain()


async def test_a_bucket_that_becomes_fast_within_a_request_keeps_rows_and_answers_in_order():
    seen = []

    def infer(pixels):
        seen.append((threading.current_thread() is threading.main_thread(), earlier.done()))
        return logits_of(*pixels[:, 0, 0].astype(int))

    batcher = make(infer, buckets=(2,), seconds_per_bucket={2: 0.0011}, inline_below_ms=1.0, clock=Clock())
    earlier, split = batcher.submit(rows(1)), batcher.submit(rows(2, 3, 4, 5))
    answers = await settled(earlier, split)
    np.testing.assert_array_equal(answers[0].logits, logits_of(1))
    np.testing.assert_array_equal(answers[1].logits, logits_of(2, 3, 4, 5))
    assert seen == [(False, False), (True, True), (True, True)]
    await batcher.drain()


async def test_a_full_queue_of_batches_on_the_event_loop_is_answered_and_lets_the_loop_turn_between_them():
    backend = HeldBackend(held=False)
    batcher = make(
        backend, buckets=(1,), max_queue_rows=3000, seconds_per_bucket={1: 0.0}, inline_below_ms=1e9, clock=Clock()
    )
    futures = [batcher.submit(rows(number % 200)) for number in range(3000)]
    done_at_turn = []
    while not futures[-1].done():
        await asyncio.sleep(0)
        done_at_turn.append(sum(future.done() for future in futures))
    assert len(set(done_at_turn)) > 1000
    for number, answer in enumerate(await settled(*futures)):
        np.testing.assert_array_equal(answer.logits, logits_of(number % 200))
    await batcher.drain()


async def test_what_fails_on_the_event_loop_fails_its_own_batch_only():
    backend = HeldBackend(held=False)
    batcher = make(backend, buckets=(1,), seconds_per_bucket={1: 0.0}, inline_below_ms=1e9)

    def fail(_):
        raise ValueError("no")

    backend.misbehave = fail
    failed, answered = await settled(batcher.submit(rows(1)), batcher.submit(rows(2)))
    assert isinstance(failed, BackendError)
    np.testing.assert_array_equal(answered.logits, logits_of(2))
    assert backend.threads == {threading.current_thread()}
    await batcher.drain()


async def test_drain_waits_for_a_reservation_and_computes_its_rows(backend):
    backend.release_all()
    batcher = make(backend)
    reservation = batcher.reserve(2, ready=Ready(1.0, 1.0))
    other = batcher.reserve(1, ready=Ready(1.0, 1.0))
    drain = asyncio.create_task(batcher.drain())
    await loop_turns()
    other.release()
    await loop_turns()
    assert not drain.done()
    answer = batcher.submit(rows(1, 2), reservation=reservation)
    await settled(drain)
    np.testing.assert_array_equal(answer.result().logits, logits_of(1, 2))
