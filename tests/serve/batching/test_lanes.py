"""Batches side by side: which lane gets what, and what one lane's fate means for the others."""

import asyncio

import numpy as np
import pytest

from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.lanes import LOST_AFTER, rows_to_start, seconds_until_free
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.errors import BackendError, OverloadedError
from tests.fakes.clock import Clock
from tests.fakes.held_backend import ROW_SHAPE, HeldBackend, logits_of, rows
from tests.serve.batching.batchers import batcher_of

BUCKETS = (1, 2, 3, 4)


def make(*lanes: HeldBackend, alone: HeldBackend | None = None, **options: object) -> Batcher:
    """A batcher of held lanes, and of `alone` with all cores."""
    options = {"buckets": BUCKETS, "max_queue_rows": 64, "unsaturated_rows": 2, "clock": Clock()} | options
    return batcher_of(alone or lanes[0], lanes=lanes, alone_rows=3 if alone else 0, row_shape=ROW_SHAPE, **options)


async def answers(*futures: asyncio.Future) -> list[object]:
    return await asyncio.gather(*futures, return_exceptions=True)


async def test_batches_run_side_by_side_each_in_a_thread_of_its_own():
    first, second = HeldBackend(), HeldBackend()
    batcher = make(first, second)
    future = batcher.submit(rows(1, 2, 3, 4))
    await first.entered()
    await second.entered()
    assert (first.batches, second.batches, batcher.running_rows) == ([[1, 2]], [[3, 4]], 4)
    assert first.threads.isdisjoint(second.threads)
    first.release_all()
    second.release_all()
    await future
    await batcher.drain()


async def test_a_request_over_two_lanes_is_joined_by_place_whichever_ends_first():
    first, second = HeldBackend(), HeldBackend()
    batcher = make(first, second)
    future = batcher.submit(rows(1, 2, 3, 4))
    await second.entered()
    second.release_all()
    while batcher.running_rows == 4:  # noqa: ASYNC110 the lane's thread tells the event loop alone
        await asyncio.sleep(0)
    assert not future.done()
    first.release_all()
    np.testing.assert_array_equal((await future).logits, logits_of(1, 2, 3, 4))
    await batcher.drain()


async def test_a_lane_that_fails_fails_its_own_requests_only():
    first, second = HeldBackend(), HeldBackend()
    batcher = make(first, second, unsaturated_rows=1)

    def fail(_):
        raise RuntimeError("broken")

    first.misbehave = fail
    failed, sound = batcher.submit(rows(1)), batcher.submit(rows(2))
    await first.entered()
    await second.entered()
    first.release_all()
    second.release_all()
    outcomes = await answers(failed, sound)
    assert isinstance(outcomes[0], BackendError)
    np.testing.assert_array_equal(outcomes[1].logits, logits_of(2))
    await batcher.drain()


async def test_a_lane_that_hangs_holds_up_nothing_else():
    hanging, other = HeldBackend(), HeldBackend(held=False)
    batcher = make(hanging, other, buckets=(1,))
    stuck, *rest = [batcher.submit(rows(number)) for number in range(10)]
    await asyncio.gather(*rest)
    assert not stuck.done()
    assert sum(other.batch_rows) == 9
    hanging.release_all()
    await stuck
    await batcher.drain()


async def test_an_idle_backend_computes_few_rows_with_all_cores_and_more_on_lanes():
    alone, first, second = HeldBackend(held=False), HeldBackend(held=False), HeldBackend(held=False)
    batcher = make(first, second, alone=alone)
    for count in (1, 3, 4):
        answer = await batcher.submit(rows(*range(count)))
        np.testing.assert_array_equal(answer.logits, logits_of(*range(count)))
    assert alone.batch_rows == [1, 3]
    assert (first.batch_rows, second.batch_rows) == ([2], [2])
    await batcher.drain()


async def test_while_a_batch_has_all_cores_no_lane_begins():
    alone, first, second = HeldBackend(), HeldBackend(held=False), HeldBackend(held=False)
    batcher = make(first, second, alone=alone)
    only = batcher.submit(rows(1))
    await alone.entered()
    later = batcher.submit(rows(2, 3, 4, 5))
    for _ in range(50):
        await asyncio.sleep(0)
    assert (batcher.running_rows, batcher.queued_rows) == (1, 4)
    alone.release_all()
    await asyncio.gather(only, later)
    assert alone.batch_rows == [1]
    assert (first.batch_rows, second.batch_rows) == ([2], [2])
    await batcher.drain()


async def test_a_lane_that_is_free_takes_what_comes_while_another_works():
    alone, first, second = HeldBackend(held=False), HeldBackend(), HeldBackend(held=False)
    batcher = make(first, second, alone=alone)
    long = batcher.submit(rows(1, 2, 3, 4))
    await first.entered()
    np.testing.assert_array_equal((await batcher.submit(rows(7))).logits, logits_of(7))
    assert alone.batches == []
    first.release_all()
    await long
    await batcher.drain()


async def test_a_cancelled_request_counts_as_computed_until_every_lane_with_its_rows_has_ended():
    first, second = HeldBackend(), HeldBackend()
    ended: list[bool] = []
    batcher = make(first, second, on_batch=lambda _: ended.append(batcher.computes(future)))
    future = batcher.submit(rows(1, 2, 3, 4))
    await first.entered()
    await second.entered()
    future.cancel()
    assert batcher.computes(future)
    first.release_all()
    second.release_all()
    await batcher.drain()
    assert ended == [True, False]


async def test_a_hanging_lane_is_left_out_of_what_is_promised():
    hanging, other = HeldBackend(), HeldBackend()
    clock = Clock()
    batcher = make(hanging, other, buckets=(1,), seconds_per_bucket={1: 1.0}, clock=clock)
    futures = [batcher.submit(rows(number)) for number in range(2)]
    await hanging.entered()
    await other.entered()
    assert batcher.load(clock()).lane_seconds == (1.0, 1.0)
    clock.now += 1.0
    other.release_all()
    await futures[1]
    clock.now += LOST_AFTER
    futures += [batcher.submit(rows(number)) for number in range(3)]
    # One lane is left: the third of three rows waits for two batches, where two lanes would have it wait for one.
    with pytest.raises(OverloadedError):
        batcher.submit(rows(9), deadline=clock() + 3.5)
    hanging.release_all()
    await asyncio.gather(*futures)
    await batcher.drain()


def test_lanes_with_cores_of_their_own_share_rows_evenly():
    policy = BatchPolicy(BUCKETS, max_queue_rows=8, lanes=2)
    assert [rows_to_start(policy, queued, 2, []) for queued in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert rows_to_start(policy, 3, 1, [4]) == 3


def test_on_a_shared_device_a_batch_begins_beside_another_only_if_it_is_no_smaller():
    policy = BatchPolicy((1, 2, 4, 8), max_queue_rows=64, lanes=2, lanes_share_device=True)
    assert rows_to_start(policy, 3, 2, []) == 3
    assert rows_to_start(policy, 3, 1, [4]) == 0
    assert rows_to_start(policy, 4, 1, [4]) == 4
    assert rows_to_start(policy, 8, 1, [20]) == 8


async def test_rows_beside_a_larger_batch_of_a_shared_device_wait_for_it_or_for_more():
    first, second = HeldBackend(), HeldBackend(held=False)
    batcher = make(first, second, lanes_share_device=True, unsaturated_rows=None)
    large = batcher.submit(rows(1, 2, 3, 4))
    await first.entered()
    small = batcher.submit(rows(5))
    for _ in range(50):
        await asyncio.sleep(0)
    assert second.batches == []
    more = batcher.submit(rows(6, 7, 8))
    await asyncio.gather(small, more)
    assert second.batches == [[5, 6, 7, 8]]
    last = batcher.submit(rows(9))
    first.release_all()
    await asyncio.gather(large, last)
    await batcher.drain()


def test_a_lane_that_may_never_be_free_is_left_out_unless_all_are():
    assert seconds_until_free([12.0, 0.0, float("inf"), 10.5], 10.0) == (0.0, 0.5, 2.0)
    assert seconds_until_free([float("inf")], 10.0) == (0.0,)


@pytest.mark.parametrize("wrong", [{"lanes": 0}, {"lanes": 17}, {"alone_rows": 5}, {"alone_rows": -1}])
def test_numbers_of_lanes_that_make_no_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="expected 1 to 16"):
        BatchPolicy(BUCKETS, max_queue_rows=8, **wrong)


def test_as_many_lanes_are_given_as_the_policy_says():
    backend = HeldBackend()
    with pytest.raises(ValueError, match="2 lanes: expected 3"):
        Batcher(backend, BatchPolicy(BUCKETS, max_queue_rows=8, lanes=3), row_shape=ROW_SHAPE, lanes=[backend] * 2)
