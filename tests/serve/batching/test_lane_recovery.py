"""A batch that never ends: its requests fail, its lane is replaced, and nothing of it is handed out later."""

import asyncio
from typing import Any

import numpy as np
import pytest

from fuseline.serve.batching.batcher import Batcher, BatchStats
from fuseline.serve.batching.lane_recovery import FIRST_CALL_TIMES, MOST_SPARES, OPENING_TIMES, Watch
from fuseline.serve.batching.lanes import LOST_AFTER, Infer
from fuseline.serve.errors import BackendError, BackendLostError
from tests.fakes.held_backend import ROW_SHAPE, logits_of, rows
from tests.fakes.virtual_time import VirtualExecutor, VirtualLoop, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of

TIMEOUT_S = 8.0
HANGS = 66
"""A row on which a backend takes `hang_s`."""


class Machine:
    """Backends in virtual time, of which each takes a second, and `hang_s` on a row that hangs."""

    def __init__(self, loop: VirtualLoop, *, hang_s: float = 1000.0, call_s: float = 1.0) -> None:
        self.loop = loop
        self.executor = VirtualExecutor(loop)
        self.hang_s = hang_s
        self.call_s = call_s
        self.spares = 0
        self.stats: list[BatchStats] = []

    def infer(self, pixels: Any) -> Any:
        numbers = pixels[:, 0, 0].astype(int)
        self.executor.take(self.hang_s if HANGS in numbers else self.call_s)
        return logits_of(*numbers)

    def open_spare(self) -> Infer:
        self.spares += 1
        self.executor.take(3.0)
        return self.infer

    def batcher(self, *, lanes: int = 1, spare: bool = True, **options: Any) -> Batcher:
        measured = {1: self.call_s, 4: self.call_s}
        options = {
            "buckets": (1, 4),
            "max_queue_rows": 64,
            "seconds_per_bucket": measured,
            "clock": self.loop.clock,
        } | options
        return batcher_of(
            self.infer,
            lanes=[self.infer] * lanes if lanes > 1 else (),
            row_shape=ROW_SHAPE,
            executor=self.executor,
            on_batch=self.stats.append,
            watch=Watch(TIMEOUT_S, self.open_spare if spare else None),
            **options,
        )


async def outcome(future: asyncio.Future) -> object:
    return (await asyncio.gather(future, return_exceptions=True))[0]


def test_a_batch_that_never_ends_fails_within_the_bound_and_a_look_and_its_lane_is_replaced():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher()
        hung, waiting = batcher.submit(rows(HANGS, 1, 2, 3)), batcher.submit(rows(5))
        error = await outcome(hung)
        assert isinstance(error, BackendError)
        assert "has not returned from a batch of 4 rows" in str(error)
        assert TIMEOUT_S < loop.time() <= TIMEOUT_S * 1.25
        assert (batcher.is_stalled, batcher.is_lost, batcher.hung_calls) == (True, False, 1)
        np.testing.assert_array_equal((await waiting).logits, logits_of(5))
        assert loop.time() <= TIMEOUT_S * 1.25 + 3 + 1
        assert (batcher.is_stalled, machine.spares) == (False, 1)
        assert [stats.failed for stats in machine.stats] == [True, False]
        await batcher.drain()

    run_in_virtual_time(main)


def test_other_lanes_go_on_while_one_hangs():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher(lanes=2, spare=False, buckets=(1,), seconds_per_bucket={1: 1.0})
        hung = batcher.submit(rows(HANGS))
        for number in range(20):
            np.testing.assert_array_equal((await batcher.submit(rows(number))).logits, logits_of(number))
        assert isinstance(await outcome(hung), BackendError)
        assert (batcher.is_stalled, batcher.is_lost) == (False, False)
        assert len(batcher.admission_snapshot()) == len(machine.batcher(lanes=2, buckets=(1,)).admission_snapshot())
        await batcher.drain()

    run_in_virtual_time(main)


def test_without_a_lane_left_what_waits_fails_at_once_and_nothing_is_admitted():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher(spare=False)
        hung, waiting = batcher.submit(rows(HANGS, 1, 2, 3)), batcher.submit(rows(5))
        assert isinstance(await outcome(hung), BackendError)
        assert isinstance(await outcome(waiting), BackendLostError)
        assert loop.time() <= TIMEOUT_S * 1.25
        assert batcher.is_lost
        with pytest.raises(BackendLostError):
            batcher.submit(rows(6))
        with pytest.raises(BackendLostError):
            batcher.reserve(1, ready=lambda *_: 0.0)
        await batcher.drain()

    run_in_virtual_time(main)


def test_a_result_that_comes_late_is_thrown_away_and_its_lane_works_again():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop, hang_s=30.0)
        batcher = machine.batcher(spare=False)
        hung = batcher.submit(rows(HANGS))
        assert isinstance(await outcome(hung), BackendError)
        assert batcher.is_lost
        await asyncio.sleep(31 - loop.time())
        assert (batcher.is_lost, batcher.hung_calls) == (False, 0)
        np.testing.assert_array_equal((await batcher.submit(rows(7))).logits, logits_of(7))
        assert [stats.rows for stats in machine.stats] == [1, 1]
        await batcher.drain()

    run_in_virtual_time(main)


def test_a_late_result_of_a_lane_that_was_replaced_changes_nothing():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop, hang_s=30.0)
        batcher = machine.batcher()
        hung = batcher.submit(rows(HANGS))
        assert isinstance(await outcome(hung), BackendError)
        await asyncio.sleep(29.5 - loop.time())
        running = batcher.submit(rows(7))
        await asyncio.sleep(1)
        np.testing.assert_array_equal((await running).logits, logits_of(7))
        assert (batcher.hung_calls, batcher.running_rows) == (0, 0)
        # One lane, as before: two batches take two seconds.
        begun = loop.time()
        await asyncio.gather(batcher.submit(rows(1, 2, 3, 4)), batcher.submit(rows(5, 6, 7, 8)))
        assert loop.time() - begun == pytest.approx(2.0)
        await batcher.drain()

    run_in_virtual_time(main)


def test_batches_that_take_long_as_measured_and_the_first_of_a_bucket_are_no_hangs():
    async def main(loop: VirtualLoop) -> None:
        slow = Machine(loop, call_s=6.0, hang_s=0.9 * LOST_AFTER * 6.0)
        batcher = slow.batcher()
        await batcher.submit(rows(HANGS))
        await batcher.drain()
        first = Machine(loop, hang_s=0.9 * FIRST_CALL_TIMES * TIMEOUT_S)
        batcher = first.batcher(seconds_per_bucket={})
        await batcher.submit(rows(HANGS))
        await batcher.drain()
        assert not any(stats.failed for stats in (*slow.stats, *first.stats))

    run_in_virtual_time(main)


def test_a_process_that_was_stopped_for_long_gives_up_no_lane():
    async def main(loop: VirtualLoop) -> None:
        stopped_s = 0.0
        machine = Machine(loop, call_s=TIMEOUT_S / 2)
        batcher = machine.batcher(clock=lambda: loop.clock() + stopped_s)
        future = batcher.submit(rows(1))
        await asyncio.sleep(1)
        stopped_s = 20 * TIMEOUT_S
        np.testing.assert_array_equal((await future).logits, logits_of(1))
        await batcher.drain()

    run_in_virtual_time(main)


def test_an_instance_that_can_not_be_opened_or_hangs_too_leaves_no_lane():
    async def main(loop: VirtualLoop) -> None:
        def fail() -> Infer:
            raise BackendError("no memory")

        machine = Machine(loop)
        machine.open_spare = fail
        batcher = machine.batcher()
        hung, waiting = batcher.submit(rows(HANGS, 1, 2, 3)), batcher.submit(rows(5))
        assert isinstance(await outcome(hung), BackendError)
        assert isinstance(await outcome(waiting), BackendLostError)
        await batcher.drain()

        def hang() -> Infer:
            machine.executor.take(10_000)
            return machine.infer

        machine.open_spare = hang
        batcher = machine.batcher()
        begun = loop.time()
        hung, waiting = batcher.submit(rows(HANGS, 1, 2, 3)), batcher.submit(rows(5))
        assert isinstance(await outcome(hung), BackendError)
        assert isinstance(await outcome(waiting), BackendLostError)
        assert loop.time() - begun <= TIMEOUT_S * (1.25 + OPENING_TIMES)
        await batcher.drain()

    run_in_virtual_time(main)


def test_instances_are_opened_a_few_times_only():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher()
        for _ in range(MOST_SPARES + 1):
            assert type(await outcome(batcher.submit(rows(HANGS)))) is BackendError
        assert isinstance(await outcome(asyncio.ensure_future(later(batcher))), BackendLostError)
        assert (machine.spares, batcher.hung_calls) == (MOST_SPARES, MOST_SPARES + 1)
        await batcher.drain()

    async def later(batcher: Batcher) -> object:
        return await batcher.submit(rows(1))

    run_in_virtual_time(main)


def test_a_batch_that_hangs_with_all_cores_leaves_the_lanes_to_work():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher(lanes=2, alone_rows=1, alone_seconds_per_bucket={1: 0.5})
        hung, waiting = batcher.submit(rows(HANGS)), None
        await asyncio.sleep(0.1)
        waiting = batcher.submit(rows(1, 2, 3, 4))
        assert isinstance(await outcome(hung), BackendError)
        np.testing.assert_array_equal((await waiting).logits, logits_of(1, 2, 3, 4))
        np.testing.assert_array_equal((await batcher.submit(rows(3))).logits, logits_of(3))
        assert (machine.spares, batcher.is_stalled) == (0, False)
        await batcher.drain()

    run_in_virtual_time(main)


def test_a_drain_ends_although_a_batch_never_does():
    async def main(loop: VirtualLoop) -> None:
        machine = Machine(loop)
        batcher = machine.batcher()
        hung = batcher.submit(rows(HANGS, 1, 2, 3))
        await asyncio.sleep(0.1)
        await batcher.drain()
        assert loop.time() <= TIMEOUT_S * 1.25
        assert isinstance(await outcome(hung), BackendError)

    run_in_virtual_time(main)
