"""Why batches leave: the rule on plain numbers, and a batcher's batches in virtual time."""

import asyncio

import numpy as np
import pytest

from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.departure import BATCH_REASONS, reason_of
from tests.fakes.held_backend import ROW_SHAPE, HeldBackend, row
from tests.fakes.virtual_time import VirtualExecutor, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of

ROW = row(0)


def reason(rows=2, waiting=2, most=8, share=8, deadline=False, draining=False, follows=False, left=None):
    return reason_of(rows, waiting, most, share, deadline, draining, follows, left)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "idle"),
        ({"follows": True}, "next"),
        ({"rows": 8, "waiting": 8}, "full"),
        ({"rows": 8, "waiting": 20, "follows": True}, "full"),
        ({"rows": 8, "waiting": 8, "draining": True}, "full"),
        # Of 6 rows 4 are computed, as a bucket of 8 would cost more.
        ({"rows": 4, "waiting": 6}, "full"),
        # Two idle lanes share 4 rows.
        ({"rows": 2, "waiting": 4, "share": 2}, "idle"),
        ({"rows": 4, "waiting": 8, "deadline": True}, "deadline"),
        ({"draining": True}, "drain"),
        ({"draining": True, "left": 1.0}, "drain"),
        ({"left": 0.0}, "delay"),
        ({"left": -0.1, "follows": True}, "delay"),
        # It could have waited longer, had no request been in a hurry.
        ({"left": 0.1}, "deadline"),
    ],
)
def test_the_reason_follows_from_numbers(numbers, expected):
    assert reason(**numbers) == expected
    assert expected in BATCH_REASONS


def recording(backend, **options):
    """A batcher, and the reasons of its batches in their order."""
    told: list[BatchStats] = []
    options = {"buckets": (1, 2, 4), "max_queue_rows": 64} | options
    batcher = batcher_of(backend, row_shape=ROW_SHAPE, clock=backend.clock, on_batch=told.append, **options)
    return batcher, told


async def test_an_idle_lane_takes_what_came_and_a_busy_one_what_came_meanwhile():
    backend = HeldBackend(call_s=1.0)
    batcher, told = recording(backend)
    futures = [batcher.submit([ROW])]
    await backend.entered()
    futures += [batcher.submit([ROW] * 5), batcher.submit([ROW] * 2)]
    backend.release_all()
    await asyncio.gather(*futures)
    await batcher.drain()
    assert [(stats.rows, stats.reason, stats.lane) for stats in told] == [
        (1, "idle", 0),
        (4, "full", 0),
        (3, "next", 0),
    ]


async def test_the_last_batch_of_a_drain_says_so_and_each_tells_its_requests():
    backend = HeldBackend(held=False)
    batcher, told = recording(backend, max_delay_ms=10_000)
    futures = [batcher.submit([ROW]), batcher.submit([ROW] * 2)]
    await batcher.drain()
    await asyncio.gather(*futures)
    (stats,) = told
    assert stats.reason == "drain"
    assert [(request, first, count) for request, first, count in stats.shares] == [
        (futures[0], 0, 1),
        (futures[1], 0, 2),
    ]


def test_a_batch_that_waited_as_long_as_it_may_leaves_for_that():
    async def main(loop):
        told: list[BatchStats] = []
        batcher = batcher_of(
            lambda pixels: np.zeros((len(pixels), 2), np.float32),
            row_shape=ROW_SHAPE,
            clock=loop.clock,
            executor=VirtualExecutor(loop),
            on_batch=told.append,
            buckets=(1, 2, 4),
            max_queue_rows=8,
            max_delay_ms=20,
        )
        await batcher.submit([ROW])
        await batcher.drain()
        return loop.time(), [stats.reason for stats in told]

    waited_s, reasons = run_in_virtual_time(main)
    assert waited_s == pytest.approx(0.02, abs=0.001)
    assert reasons == ["delay"]


async def test_a_batch_of_a_failing_call_has_its_reason_too():
    backend = HeldBackend(held=False)
    told: list[BatchStats] = []

    def failing(pixels):
        raise RuntimeError("broken")

    batcher = batcher_of(
        failing, row_shape=ROW_SHAPE, clock=backend.clock, on_batch=told.append, buckets=(1, 2), max_queue_rows=8
    )
    await asyncio.gather(batcher.submit([ROW]), return_exceptions=True)
    await batcher.drain()
    assert [(stats.reason, stats.failed) for stats in told] == [("idle", True)]


async def test_requests_that_wait_are_counted_as_they_come_start_and_leave():
    backend = HeldBackend(call_s=1.0)
    batcher, _ = recording(backend)
    first = batcher.submit([ROW])
    await backend.entered()
    assert batcher.queued_requests == 0
    waiting = [batcher.submit([ROW] * count) for count in (1, 3, 6)]
    assert batcher.queued_requests == 3
    waiting[0].cancel()
    assert batcher.queued_requests == 2
    backend.release_all()
    await asyncio.gather(first, *waiting[1:])
    assert batcher.queued_requests == 0
    await batcher.drain()
