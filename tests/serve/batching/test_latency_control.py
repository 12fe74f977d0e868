"""Steering toward a latency, in virtual time."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from fuseline.serve.batching.latency_control import LatencyControl, Rung, rungs_of
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.requests import ANYONE, BULK, Caller
from tests.fakes.virtual_time import VirtualExecutor, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of
from tests.serve.batching.simulated_load import CPU, ROW

CURVE = {1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024, 16: 0.040, 32: 0.072}
"""Seconds by bucket of a device that gains from batches up to the largest: 100 rows a second to 444."""


def steered(callers, target_ms, *, bulk_rows=0, seconds=120.0):
    """Closed-loop `callers` for so long, and one with requests of `bulk_rows`.

    Return decisions, the former's latencies by time, and rows of all answered a second.
    """
    decisions, latencies = [], []
    rows = 0

    async def main(loop):
        random, executor = np.random.default_rng(0), VirtualExecutor(loop)

        def infer(pixels):
            executor.take(CURVE[len(pixels)] * float(np.exp(random.normal(0, 0.03))))
            return np.zeros((len(pixels), 2), np.float32)

        batcher = batcher_of(
            infer,
            row_shape=(1,),
            buckets=tuple(CURVE),
            seconds_per_bucket=CURVE,
            max_queue_rows=4096,
            max_queue_ms=1e9,
            latency_target_ms=target_ms,
            on_decision=decisions.append,
            clock=loop.clock,
            executor=executor,
        )

        async def caller():
            while (came := loop.time()) < seconds:
                await batcher.submit([ROW])
                latencies.append((loop.time(), loop.time() - came))

        async def bulk():
            nonlocal rows
            while loop.time() < seconds:
                await batcher.submit([ROW] * bulk_rows)
                rows += bulk_rows

        async with asyncio.TaskGroup() as calls:
            if bulk_rows:
                calls.create_task(bulk())
            for _ in range(callers):
                calls.create_task(caller())
        await batcher.drain()

    run_in_virtual_time(main)
    return decisions, latencies, (rows + len(latencies)) / seconds


def p99_ms(latencies, start):
    return 1000 * float(np.percentile([seconds for at, seconds in latencies if at >= start], 99))


def test_what_is_below_the_target_is_served_by_the_batches_of_the_most_rows_a_second():
    decisions, _, rate = steered(64, 1000)
    _, _, free = steered(64, None)
    assert rate >= 0.97 * free
    assert {decision.direction for decision in decisions} <= {"stay"}


def test_batches_become_smaller_until_the_target_is_met_and_stay_there():
    """Few callers beside large batches, which are what they wait for."""
    _, free, _ = steered(4, None, bulk_rows=256)
    assert p99_ms(free, 60) >= 140
    decisions, latencies, _ = steered(4, 100, bulk_rows=256)
    assert p99_ms(latencies, 60) <= 100
    # Not smaller than need be: two batches of 32 take 144 ms, of 16 80 ms.
    assert decisions[-1].rung.most_rows == 16


@pytest.mark.slow
def test_it_does_not_swing():
    """Changes are rare after a while: each step that failed is tried again after ever longer."""
    for target_ms in (20, 60, 100, 150):
        for callers, bulk_rows in ((32, 0), (4, 256)):
            decisions, _, _ = steered(callers, target_ms, bulk_rows=bulk_rows, seconds=200.0)
            late = decisions[len(decisions) // 2 :]
            assert sum(decision.direction != "stay" for decision in late) <= 0.1 * len(late), (target_ms, callers)


def test_a_rung_that_is_fine_for_a_while_only_is_tried_ever_less_often():
    """The target lies within the noise of what two batches of 32 take."""
    decisions, _, _ = steered(4, 150, bulk_rows=256, seconds=60.0)
    assert sum(decision.direction == "up" for decision in decisions) <= 4


def test_an_impossible_target_is_told_once_and_costs_little():
    decisions, _, rate = steered(64, 1)
    assert sum(decision.is_impossible for decision in decisions) == 1
    _, _, free = steered(64, None)
    assert rate >= 0.9 * free, "smaller batches only make a full queue wait longer, so they are given up"


def control(target_s=0.1, table=CURVE):
    return LatencyControl(target_s, BatchProfile(tuple(table), table, 0.0), tuple(table), 0.0)


def decide(control, now, latency, rows=None):
    rows = control.rung.most_rows if rows is None else rows
    return control.note([latency] * 200, rows, now)


def test_rungs_lead_to_the_most_rows_a_second_then_to_delays():
    profile = BatchProfile(tuple(CPU), CPU, 0.0)
    rungs = rungs_of(profile, tuple(CPU), 0.32)
    # A CPU gains nothing from batches of more than 4.
    assert rungs == [Rung(1, 0), Rung(2, 0), Rung(3, 0), Rung(4, 0), Rung(4, 0.01), Rung(4, 0.02), Rung(4, 0.04)]


def test_a_step_that_does_not_help_is_taken_back_and_held_for_ever_longer():
    its = control()
    tried, now = [], 0.0
    for window in range(40):
        now += 1.1
        if decide(its, now, 0.2).direction == "down":
            tried.append(window)
    assert tried[:4] == [0, 5, 14, 31]


def test_a_step_that_helps_is_followed_by_another():
    its = control()
    directions = [
        decide(its, 1.1 * (n + 1), latency).direction for n, latency in enumerate((0.3, 0.2, 0.12, 0.09, 0.09))
    ]
    assert directions == ["down", "down", "down", "stay", "stay"]
    assert its.rung == Rung(4, 0.0)


def test_after_a_window_clearly_below_the_target_larger_batches_are_tried_if_these_are_full():
    its = control()
    for n, latency in enumerate((0.3, 0.2)):
        decide(its, 1.1 * (n + 1), latency)
    assert its.rung.most_rows == 8
    assert decide(its, 3.3, 0.05, rows=3).direction == "stay"
    assert decide(its, 4.4, 0.05, rows=8).direction == "up"
    # It was too much.
    assert decide(its, 5.5, 0.11).direction == "down"
    assert [decide(its, 6.6 + n, 0.05, rows=8).direction for n in range(3)] == ["stay"] * 3


def test_a_delay_is_tried_where_batches_are_neither_full_nor_alone():
    its = control()
    assert decide(its, 1.1, 0.02, rows=1).direction == "stay"
    assert decide(its, 2.2, 0.02, rows=32).direction == "stay"
    assert decide(its, 3.3, 0.02, rows=8).direction == "up"
    assert its.rung == Rung(32, 0.1 / 32)


def test_a_window_needs_time_and_answers():
    its = control()
    assert its.note([0.2] * 200, 32, 0.5) is None
    assert its.note([0.2], 1, 1.5) is not None
    assert its.note([0.2], 1, 3.0) is None
    assert its.note([0.2], 1, 12.0) is not None


def test_only_what_could_be_quick_counts():
    def answered(rows, caller=ANYONE):
        return SimpleNamespace(admitted=0.0, row_count=rows, caller=caller), 0, rows

    its = control()
    large, bulk = answered(33), answered(1, Caller("", BULK))
    assert its.note_batch(SimpleNamespace(shares=[large, bulk], rows=[ROW] * 34), 20.0) is None
    decision = its.note_batch(SimpleNamespace(shares=[large, bulk, answered(32)], rows=[ROW] * 66), 40.0)
    assert decision.latency_seconds == pytest.approx(40.0, rel=0.021)


@pytest.mark.parametrize("latency", [0.0005, 0.0123, 0.5, 30.0])
def test_the_measured_latency_is_within_two_percent(latency):
    assert decide(control(), 1.1, latency).latency_seconds == pytest.approx(latency, rel=0.021)
