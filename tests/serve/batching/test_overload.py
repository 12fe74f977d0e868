"""Overload in virtual time: goodput stays at what a closed loop gets, whatever is offered; the rest is told at once."""

import asyncio
import functools
import math

import numpy as np
import pytest

from fuseline.serve.batching.admission import Admission, Load, Ready
from fuseline.serve.batching.batch_size import BatchSize
from fuseline.serve.batching.bucket_choice import BucketChoice
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.predictions import Margins
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.errors import DeadlineError, OverloadedError
from tests.fakes.virtual_time import VirtualExecutor, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of
from tests.serve.batching.simulated_load import (
    ALONE,
    CPU,
    GPU,
    LANE,
    QUIET,
    ROW,
    Machine,
    burst,
    closed_loop,
    open_loop,
)

ON_CPU = Machine()
ON_GPU = Machine(GPU)
ON_LANES = Machine(LANE, lanes=2, alone=ALONE)
DEADLINES = {"100 ms": (0.1,), "250 ms": (0.25,), "1 s": (1.0,), "mixed": (0.1, 0.25, 1.0)}
GPU_SCALE = 20
"""A GPU's deadlines are so much shorter, as its batches are."""


@functools.cache
def capacity(on_gpu: bool = False) -> float:
    return closed_loop(ON_GPU, callers=128, seconds=0.5) if on_gpu else closed_loop(ON_CPU)


@functools.cache
def capacity_of_lanes() -> float:
    return closed_loop(ON_LANES)


def on_cpu(load, patience_s, **options):
    """An open loop at `load` times the capacity, and its goodput as a share of that."""
    outcome = open_loop(options.pop("machine", ON_CPU), load * capacity(), patience_s, **options)
    return outcome, outcome.goodput / capacity()


@pytest.mark.parametrize("patience", DEADLINES)
@pytest.mark.parametrize("load", [2, 5])
def test_on_a_cpu_overload_costs_no_goodput_and_what_is_admitted_is_in_time(load, patience):
    outcome, share = on_cpu(load, DEADLINES[patience])
    assert share >= 0.95
    assert outcome.in_time >= 0.985
    assert outcome.hopeless == 0, "with nobody ahead each could be answered, so the queue is the reason"
    assert all(error.retry_after_s > 0 for error in outcome.overloaded)


@pytest.mark.parametrize("patience", DEADLINES)
@pytest.mark.parametrize("load", [2, 5])
def test_on_lanes_it_costs_none_either(load, patience):
    outcome = open_loop(ON_LANES, load * capacity_of_lanes(), DEADLINES[patience])
    assert outcome.goodput / capacity_of_lanes() >= 0.95
    assert outcome.in_time >= 0.98


@pytest.mark.parametrize(("rows", "patience_s"), [(4, 0.25), (16, 1.0)])
@pytest.mark.parametrize("load", [2, 5])
def test_requests_that_are_split_over_lanes_are_in_time_too(load, rows, patience_s):
    outcome = open_loop(ON_LANES, load * capacity_of_lanes(), [patience_s], rows=rows)
    assert outcome.goodput / capacity_of_lanes() >= 0.92


def test_predictions_know_of_all_lanes():
    quiet = Machine(LANE, lanes=2, alone=ALONE, noise=0.03, hiccups=0.0)
    outcome = open_loop(quiet, 2 * capacity_of_lanes(), [0.25])
    predicted, late = np.array(outcome.predictions).T
    assert np.mean(np.abs(late) <= 0.15 * predicted) >= 0.9


def test_lanes_cost_a_request_on_an_idle_server_nothing():
    """At a fifth of the capacity most requests find the server idle."""
    on_lanes = open_loop(ON_LANES, 0.2 * capacity(), [None])
    on_one, _ = on_cpu(0.2, [None])
    assert on_lanes.percentile_ms(50) <= 1.05 * on_one.percentile_ms(50)
    assert on_lanes.percentile_ms(99) <= 1.2 * on_one.percentile_ms(99)


@pytest.mark.parametrize("patience", DEADLINES)
@pytest.mark.parametrize("load", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_on_a_gpu_overload_costs_no_goodput(load, patience):
    patience_s = [seconds / GPU_SCALE for seconds in DEADLINES[patience]]
    outcome = open_loop(ON_GPU, load * capacity(on_gpu=True), patience_s, seconds=0.4 if load < 5 else 0.2)
    assert outcome.goodput / capacity(on_gpu=True) >= 0.95
    assert outcome.in_time >= 0.985


@pytest.mark.parametrize(("patience", "bar"), [("100 ms", 0.9), ("250 ms", 0.95), ("1 s", 0.95), ("mixed", 0.9)])
def test_at_capacity_hardly_anything_is_lost(patience, bar):
    """With 100 ms and 32 ms for a batch hardly more than two can wait; even known to the millisecond it is 0.94."""
    outcome, share = on_cpu(1, DEADLINES[patience])
    assert share >= bar
    assert outcome.in_time >= 0.99


@pytest.mark.parametrize("patience", ["250 ms", "1 s"])
def test_below_capacity_nothing_is_refused(patience):
    outcome, share = on_cpu(0.8, DEADLINES[patience])
    assert (len(outcome.overloaded), outcome.hopeless, outcome.dropped, outcome.late) == (0, 0, 0, 0)
    assert share == pytest.approx(0.8, abs=0.01)
    # Of the batcher as it was before it looked at deadlines: 37.0 and 125.6 ms.
    assert outcome.percentile_ms(50) <= 40
    assert outcome.percentile_ms(99) <= 130


@pytest.mark.parametrize(("rows", "patience_s"), [(4, 0.25), (4, 1.0), (16, 0.5), (16, 1.0)])
@pytest.mark.parametrize("load", [2, 5])
def test_requests_of_several_images_too(load, rows, patience_s):
    _, share = on_cpu(load, [patience_s], rows=rows)
    assert share >= 0.92


@pytest.mark.parametrize("decode_s", [0.004, 0.02])
@pytest.mark.parametrize("load", [2, 5])
def test_encoded_images_too_whether_decoding_or_computing_is_what_limits(load, decode_s):
    limit = min(capacity(), 2 / decode_s)
    outcome = open_loop(ON_CPU, load * limit, [0.25], decode_s=decode_s)
    assert outcome.goodput / limit >= 0.95
    assert outcome.in_time >= 0.98


def test_without_a_deadline_the_wait_is_bounded_in_time():
    outcome, share = on_cpu(2, [None], max_queue_ms=500.0)
    assert share >= 0.95
    assert outcome.overloaded
    # The longest wait, and a batch.
    assert 500 <= outcome.percentile_ms(99) <= 500 + 1.5 * 1000 * CPU[16]


@pytest.mark.parametrize("load", [2, 5])
def test_predictions_are_within_a_tenth_on_a_quiet_machine(load):
    outcome, _ = on_cpu(load, [0.25], machine=QUIET)
    predicted, late = np.array(outcome.predictions).T
    assert np.mean(np.abs(late) <= 0.1 * predicted) >= 0.95


def test_a_neighbour_that_comes_and_goes_costs_no_more_than_it_takes():
    machine = Machine(slowness=lambda at: 2.0 if 8 <= at < 16 else 1.0)
    outcome, _ = on_cpu(2, [0.25], machine=machine, seconds=24)
    assert outcome.goodput_between(10, 16) / capacity() >= 0.9 / 2
    assert outcome.goodput_between(18, 24) / capacity() >= 0.9
    assert outcome.in_time >= 0.97


def test_who_predicted_far_too_badly_does_not_refuse_for_ever():
    """A backend that was a hundred times as slow for a while: no request has a chance by what was measured then."""
    machine = Machine(slowness=lambda at: 100.0 if at < 4 else 1.0)
    outcome, _ = on_cpu(2, [0.25], machine=machine, seconds=12)
    assert outcome.goodput_between(8, 12) / capacity() >= 0.9


def test_of_a_burst_those_are_served_that_can_be_and_the_rest_is_told_at_once():
    outcome = burst(ON_CPU, 200, 1.0)
    assert len(outcome.good_s) == outcome.admitted >= 0.95 * capacity()
    assert len(outcome.overloaded) == 200 - outcome.admitted


def test_one_that_no_queue_could_help_is_told_so():
    outcome, _ = on_cpu(2, [0.01, 0.25])
    assert outcome.hopeless > 2000
    assert outcome.in_time >= 0.99


def without_margin(patch):
    patch.setattr(Margins, "of", lambda *_: 0.0)


def without_small_batches(patch):
    patch.setattr(BatchSize, "_chosen_rows", lambda self: self._buckets[-1])
    patch.setattr(BatchSize, "of_next_batch", lambda self, _: self._buckets[-1])


def without_admission(patch):
    patch.setattr(Margins, "of", lambda *_: -math.inf)


def without_dropping(patch):
    patch.setattr(BucketChoice, "_try_bucket", lambda self, bucket, _: (min(bucket, self._queue.rows), []))


def without_learning(patch):
    patch.setattr(BatchProfile, "learn", lambda *_: None)


def slow_later():
    return Machine(slowness=lambda at: 2.0 if at >= 4 else 1.0)


@pytest.mark.parametrize(
    ("without", "load", "patience_s", "machine", "least_share", "least_in_time"),
    [
        (without_margin, 5, 0.25, ON_CPU, 0.95, 0.985),
        (without_small_batches, 1, 0.25, ON_CPU, 0.95, 0.985),
        (without_admission, 2, 0.25, ON_CPU, 0.95, 0.985),
        (without_learning, 2, 0.25, slow_later(), 0.5, 0.95),
    ],
    ids=["margin", "small batches", "admission", "learning"],
)
def test_each_mechanism_earns_its_place(without, load, patience_s, machine, least_share, least_in_time, monkeypatch):
    """With all of them both bars are met, without one of them one isn't."""
    whole, share = on_cpu(load, [patience_s], machine=machine)
    assert (share >= least_share, whole.in_time >= least_in_time) == (True, True)
    with monkeypatch.context() as patch:
        without(patch)
        less, share = on_cpu(load, [patience_s], machine=machine)
    assert share < least_share or less.in_time < least_in_time


def test_when_everything_slows_down_fewer_are_computed_in_vain_than_without_dropping(monkeypatch):
    whole, _ = on_cpu(2, [1.0], machine=slow_later(), seconds=8)
    with monkeypatch.context() as patch:
        without_dropping(patch)
        less, _ = on_cpu(2, [1.0], machine=slow_later(), seconds=8)
    assert whole.dropped >= 30
    assert whole.late <= 0.6 * less.late
    assert whole.goodput > less.goodput


async def drained(batcher, *futures):
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    await batcher.drain()
    return outcomes


def test_a_request_that_would_be_late_leaves_before_its_batch_and_the_one_behind_it_is_in_time():
    async def main(loop):
        executor, seconds, computed = VirtualExecutor(loop), iter([0.4, 0.1, 0.1]), []

        def infer(pixels):
            computed.append(len(pixels))
            executor.take(next(seconds))
            return np.zeros((len(pixels), 2), np.float32)

        batcher = batcher_of(
            infer,
            row_shape=(1,),
            buckets=(1,),
            max_queue_rows=8,
            seconds_per_bucket={1: 0.1},
            clock=loop.clock,
            executor=executor,
        )
        first = batcher.submit([ROW])
        await asyncio.sleep(0.01)
        # Both are promised by batches of 0.1 s; the first one takes four times as long.
        late, in_time = batcher.submit([ROW], deadline=0.45), batcher.submit([ROW], deadline=0.7)
        outcomes = await drained(batcher, first, late, in_time)
        assert isinstance(outcomes[1], DeadlineError)
        assert "batches take longer than they did" in str(outcomes[1])
        assert loop.time() <= 0.7
        assert computed == [1, 1], "nothing was computed for the one that left"

    run_in_virtual_time(main)


def test_what_is_promised_counts_as_ahead_of_those_who_come_later():
    profile = BatchProfile([1], {1: 0.1}, 0.0)
    admission = Admission(profile, BatchPolicy((1,), max_queue_rows=8, max_queue_ms=1000.0))
    alone = admission.check(Load(0, 0, (0.0,)), 1, None, 0.0)
    behind = admission.check(Load(3, 1, (0.05,)), 1, None, 0.0)
    assert alone.seconds == pytest.approx(0.1)
    assert behind.seconds == pytest.approx(0.05 + 4 * 0.1)


def test_one_impatient_caller_is_forgotten_and_batches_are_large_again():
    profile = BatchProfile(list(CPU), CPU, 0.0)
    admission = Admission(profile, BatchPolicy(tuple(CPU), max_queue_rows=64, max_queue_ms=1000.0, unsaturated_rows=4))
    admission.check(Load(0, 0, (0.0,)), 1, 10.1, 10.0)
    admission.begin_batch(32, 32, 10.0)
    assert admission.size.rows == 4
    admission.begin_batch(32, 64, 12.1)
    assert admission.size.rows == 16


def test_without_a_deadline_the_wait_for_a_decoder_counts_too():
    profile = BatchProfile([1], {1: 0.1}, 0.0)
    admission = Admission(profile, BatchPolicy((1,), max_queue_rows=64, max_queue_ms=1000.0))
    own = 5.0
    admission.check(Load(0, 0, (0.0,)), 1, None, 0.0, Ready(own + 0.9, own))
    with pytest.raises(OverloadedError, match="waits 1000 ms at most"):
        admission.check(Load(0, 0, (0.0,)), 1, None, 0.0, Ready(own + 1.2, own))
