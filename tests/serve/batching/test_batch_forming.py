"""When an idle batcher gives its backend the next batch: turns of the event loop, not time, decide."""

import asyncio

import pytest

from fuseline.serve.batching.policy import QUIET_TURNS, SLOW_CALL_SECONDS
from tests.fakes.held_backend import ROW_SHAPE, HeldBackend, row
from tests.serve.batching.batchers import batcher_of

ROW = row(0)


def make(backend, **options):
    options = {"buckets": tuple(range(1, 9)), "max_queue_rows": 64} | options
    return batcher_of(backend, row_shape=ROW_SHAPE, clock=backend.clock, **options)


async def test_requests_that_trickle_in_turn_by_turn_share_a_batch():
    backend = HeldBackend(held=False)
    batcher = make(backend)
    futures = []
    for _ in range(5):
        futures.append(batcher.submit([ROW]))
        for _ in range(QUIET_TURNS - 2):
            await asyncio.sleep(0)
    await asyncio.gather(*futures)
    assert backend.batch_rows == [5]
    await batcher.drain()


async def test_a_request_alone_waits_for_no_more_than_the_quiet_turns():
    backend = HeldBackend(held=False)
    batcher = make(backend)
    future = batcher.submit([ROW])
    for _ in range(QUIET_TURNS + 2):
        await asyncio.sleep(0)
    assert batcher.queued_rows == 0
    await future
    await batcher.drain()


@pytest.mark.parametrize(("unsaturated_rows", "row_count"), [(None, 8), (2, 2)])
async def test_a_batch_of_as_many_rows_as_it_takes_waits_for_nothing(unsaturated_rows, row_count):
    backend = HeldBackend(held=False)
    batcher = make(backend, unsaturated_rows=unsaturated_rows)
    future = batcher.submit([ROW] * row_count)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (batcher.running_rows, batcher.queued_rows) == (row_count, 0)
    await future
    await batcher.drain()


@pytest.mark.parametrize("slow", [True, False])
async def test_after_a_slow_call_what_waits_runs_at_once(slow):
    backend = HeldBackend(call_s=2 * SLOW_CALL_SECONDS if slow else 0.0)
    batcher = make(backend)
    first = batcher.submit([ROW])
    await backend.entered()
    second = batcher.submit([ROW])
    running_when_settled = []
    first.add_done_callback(lambda _: running_when_settled.append(batcher.running_rows))
    backend.release_all()
    await asyncio.gather(first, second)
    assert running_when_settled == [1 if slow else 0]
    assert backend.batch_rows == [1, 1]
    await batcher.drain()


async def test_a_request_cancelled_in_the_quiet_turns_never_runs():
    backend = HeldBackend(held=False)
    batcher = make(backend)
    cancelled, kept = batcher.submit([ROW]), batcher.submit([ROW])
    await asyncio.sleep(0)
    cancelled.cancel()
    await kept
    assert backend.batch_rows == [1]
    await batcher.drain()


async def test_requests_of_one_batch_share_its_logits_and_know_their_rows():
    backend = HeldBackend(held=False)
    batcher = make(backend, buckets=(4,))
    answers = await asyncio.gather(*(batcher.submit([ROW] * count) for count in (1, 2)))
    assert answers[0].shared_logits is answers[1].shared_logits
    assert [answer.first_row for answer in answers] == [0, 1]
    split = await batcher.submit([ROW] * 6)
    assert split.shared_logits is split.logits
    assert (len(split.logits), split.first_row) == (6, 0)
    await batcher.drain()


async def test_batches_stay_small_until_the_largest_can_be_filled():
    backend = HeldBackend(call_s=2 * SLOW_CALL_SECONDS)
    batcher = make(backend, buckets=(1, 2, 4, 8), unsaturated_rows=2)
    futures = [batcher.submit([ROW] * 3)]
    await backend.entered()
    futures += [batcher.submit([ROW] * 4), batcher.submit([ROW] * 8)]
    backend.release_all()
    answers = await asyncio.gather(*futures)
    # 13 wait after the first two, 5 after the eight, and a call costs the same however many rows it has.
    assert backend.batch_rows == [2, 8, 8]
    assert [len(answer.logits) for answer in answers] == [3, 4, 8]
    await batcher.drain()
