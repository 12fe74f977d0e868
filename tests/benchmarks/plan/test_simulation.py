import asyncio
import gc
import time

import numpy as np
import pytest

from fuseline.benchmarks.plan.profile import BucketSeconds, FrontEnd
from fuseline.benchmarks.plan.simulation import Arrivals, Loss, Outcome, ServingOptions, simulate
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.errors import DeadlineError, InputError, OverloadedError
from tests.benchmarks.plan.profiles import LANES, at, poisson, profile_of
from tests.fakes.virtual_time import VirtualExecutor, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of


def assert_each_has_one_fate(outcome: Outcome) -> None:
    fates = outcome.answered.astype(int) + outcome.refused + outcome.late
    assert (fates == 1).all()


@pytest.mark.parametrize("load", [0.3, 0.8, 0.95])
def test_a_lane_of_one_row_keeps_each_request_waiting_as_lindley_says(load: float) -> None:
    """A request waits for what is left of those before it: wait = max(0, wait before + seconds - gap)."""
    seconds, arrivals = 0.01, poisson(load / 0.01, 2000)
    waits = [0.0]
    for gap in np.diff(arrivals.seconds):
        waits.append(max(0.0, waits[-1] + seconds - gap))
    assert simulate(profile_of({1: seconds}), arrivals).latency_s == pytest.approx(np.array(waits) + seconds, abs=1e-9)


def test_its_mean_wait_is_what_pollaczek_and_khinchine_say() -> None:
    """M/D/1: the mean wait is load * seconds / (2 * (1 - load))."""
    seconds, load = 0.01, 0.6
    outcome = simulate(profile_of({1: seconds}), poisson(load / seconds, 25_000))
    expected = load * seconds / (2 * (1 - load))
    assert np.mean(outcome.latency_s) - seconds == pytest.approx(expected, rel=0.05)
    assert outcome.busy_share[0] == pytest.approx(load, rel=0.02)


def test_a_lane_whose_times_vary_waits_longer_by_their_variance() -> None:
    """M/G/1 with times that are drawn one by one from two values: the mean wait is rate * E(s^2) / (2 * (1 - load))."""
    rng = np.random.default_rng(3)
    samples = tuple(rng.choice([0.004, 0.02], 20_000).tolist())
    varied = profile_of().model_copy(update={"buckets": (BucketSeconds(rows=1, seconds=samples),)})
    rate = 0.6 / float(np.mean(samples))
    outcome = simulate(varied, poisson(rate, 25_000))
    expected = rate * float(np.mean(np.square(samples))) / (2 * (1 - 0.6))
    assert np.mean(outcome.latency_s) - np.mean(samples) == pytest.approx(expected, rel=0.1)


def test_without_load_a_request_takes_its_batch_its_handling_and_its_way() -> None:
    front_end = FrontEnd(loop_seconds=0.001, cpu_seconds=0.001, request_mb=0.15, transport_seconds=0.0005)
    outcome = simulate(profile_of({1: 0.01, 2: 0.015}, front_end=front_end), at(0.0, 1.0, 2.0))
    assert outcome.latency_s == pytest.approx([0.0115] * 3)
    # An idle server's batch of one row has all cores, and nothing else to do.
    assert simulate(LANES, at(0.0)).latency_s == pytest.approx([0.012 + 0.0009])


def test_rows_that_came_together_share_a_batch() -> None:
    outcome = simulate(profile_of({1: 0.01, 2: 0.015, 4: 0.02}), at(0.0, 0.0, 0.0))
    assert (outcome.batches.tolist(), outcome.batch_rows.tolist()) == ([1], [3.0])
    assert outcome.latency_s == pytest.approx([0.02] * 3)


def test_the_event_loop_takes_up_one_request_after_another() -> None:
    """Where batches cost next to nothing, requests/s are what one event loop handles."""
    front_end = FrontEnd(loop_seconds=0.001, cpu_seconds=0.001, request_mb=0.15, transport_seconds=0.0)
    fast = profile_of({1: 1e-4, 32: 2e-4}, device="GPU", front_end=front_end)
    outcome = simulate(fast, poisson(1500, 3000), options=ServingOptions(max_queue_rows=10_000, max_queue_ms=60_000))
    assert outcome.answered.all()
    assert outcome.answered.sum() / outcome.seconds == pytest.approx(1000, rel=0.03)


def test_a_request_under_way_takes_of_the_cores_that_lanes_work_on() -> None:
    idle = profile_of({1: 0.1})
    front_end = FrontEnd(loop_seconds=0, cpu_seconds=0.01, client_cpu_seconds=0.02, request_mb=0.1, transport_seconds=0)
    busy = profile_of({1: 0.1}, front_end=front_end)
    # One comes while the other is computed: half of its CPU time goes by then.
    assert simulate(idle, at(0.0, 0.05)).latency_s == pytest.approx([0.1, 0.15])
    assert simulate(busy, at(0.0, 0.05)).latency_s[0] == pytest.approx(0.105)
    beside = simulate(busy, at(0.0, 0.05), options=ServingOptions(clients_beside=True))
    assert beside.latency_s[0] == pytest.approx(0.115)
    on_gpu = simulate(busy.model_copy(update={"device": "GPU"}), at(0.0, 0.05))
    assert on_gpu.latency_s[0] == pytest.approx(0.1)


def test_a_large_request_costs_the_event_loop_and_the_cores_by_its_size() -> None:
    front_end = FrontEnd(
        loop_seconds=0,
        loop_seconds_per_mb=0.01,
        cpu_seconds=0,
        cpu_seconds_per_mb=0.02,
        request_mb=0.5,
        transport_seconds=0,
    )
    one = profile_of({1: 0.1, 4: 0.4}, front_end=front_end)
    assert simulate(one, at(0.0, rows=4)).latency_s == pytest.approx([0.4 + 4 * 0.5 * 0.01])
    # Half of what the second takes of the cores, in the first one's batch.
    assert simulate(one, at(0.0, 0.2, rows=4)).latency_s[0] == pytest.approx(0.42 + 4 * 0.5 * 0.02 / 2)


def test_a_request_is_longer_on_its_way_while_all_lanes_are_busy() -> None:
    front_end = FrontEnd(
        loop_seconds=0, cpu_seconds=0, request_mb=0.1, transport_seconds=0.001, busy_transport_seconds=0.008
    )
    outcome = simulate(profile_of({1: 0.1}, front_end=front_end), at(0.0, 0.05, 0.15))
    # The first goes while the second is computed, the second comes and goes meanwhile, the third only comes.
    assert outcome.latency_s == pytest.approx([0.105, 0.159, 0.155])


def test_a_lane_is_quicker_while_the_others_are_idle() -> None:
    buckets = (BucketSeconds(rows=1, seconds=(0.2,), idle_ratio=0.5),)
    two = profile_of(lanes=2).model_copy(update={"buckets": buckets})
    assert simulate(two, at(0.0)).latency_s == pytest.approx([0.1])
    # Half of the first is done when the other begins; both go at half the speed until the first has ended.
    assert simulate(two, at(0.0, 0.05)).latency_s == pytest.approx([0.15, 0.15])


def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    samples = tuple(np.random.default_rng(1).uniform(0.008, 0.02, 200).tolist())
    varied = profile_of().model_copy(update={"buckets": (BucketSeconds(rows=1, seconds=samples),)})
    arrivals = poisson(100, 800)

    def run(seed: int) -> Outcome:
        return simulate(varied, arrivals, replicas=2, clients=3, deadline_s=0.05, seed=seed)

    assert np.array_equal(run(1).latency_s, run(1).latency_s, equal_nan=True)
    assert np.array_equal(run(1).replica, run(1).replica)
    assert not np.array_equal(run(1).latency_s, run(2).latency_s, equal_nan=True)


@pytest.mark.parametrize("deadline_s", [None, 0.05, 0.5])
@pytest.mark.parametrize("load", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("losses", [(), (Loss(1.0, 0, 0.5), Loss(2.0, 1), Loss(2.2, 0, 1.0))], ids=["steady", "losses"])
def test_each_request_is_answered_refused_or_late(
    deadline_s: float | None, load: float, losses: tuple[Loss, ...]
) -> None:
    arrivals = poisson(load * 2 * LANES.rows_per_s, 1200)
    outcome = simulate(LANES, arrivals, replicas=2, deadline_s=deadline_s, losses=losses, clients=5)
    assert_each_has_one_fate(outcome)
    if deadline_s is None:
        assert not outcome.late.any()
    else:
        assert np.nanmax(outcome.latency_s) <= deadline_s
    assert (outcome.busy_share <= 1 + 1e-9).all()


def test_requests_that_no_replica_could_take_are_refused() -> None:
    outcome = simulate(profile_of(), at(0.1, 0.5, 0.9), losses=[Loss(0.3, 0, 0.4)])
    assert outcome.refused.tolist() == [False, True, False]
    assert outcome.replica.tolist() == [0, -1, 0]
    assert outcome.latency_s[[0, 2]] == pytest.approx([0.01, 0.01])


def test_what_was_under_way_at_a_lost_replica_is_sent_to_another() -> None:
    slow = profile_of({1: 1.0})
    outcome = simulate(slow, at(0.0, 0.0), replicas=2, losses=[Loss(0.4, 0)])
    assert outcome.replica.tolist() == [1, 1]
    # The other's own request is computed first.
    assert sorted(outcome.latency_s) == pytest.approx([1.0, 2.0])


def test_an_answer_that_came_before_the_loss_counts() -> None:
    outcome = simulate(profile_of({1: 0.1}), at(0.0, 0.0), replicas=2, losses=[Loss(0.15, 0)])
    assert outcome.latency_s == pytest.approx([0.1, 0.1])
    assert sorted(outcome.replica.tolist()) == [0, 1]


def test_a_lost_replica_comes_back_with_nothing_in_its_queue() -> None:
    outcome = simulate(profile_of({1: 0.1}), at(0.0, 0.0, 1.0, 1.0), replicas=2, losses=[Loss(0.05, 0, 0.5)])
    assert sorted(outcome.replica[2:].tolist()) == [0, 1]
    assert outcome.latency_s[2:] == pytest.approx([0.1, 0.1])


def test_replicas_share_the_load_evenly() -> None:
    outcome = simulate(profile_of({1: 0.01}), poisson(0.8 * 400, 4000), replicas=4)
    assert np.bincount(outcome.replica, minlength=4) / 1000 == pytest.approx([1.0] * 4, abs=0.05)


def test_many_clients_that_know_only_of_their_own_requests_balance_worse() -> None:
    arrivals = poisson(0.8 * 400, 5000)
    known, unknown = (simulate(profile_of({1: 0.01}), arrivals, replicas=4, clients=n) for n in (1, 400))
    assert np.mean(unknown.latency_s) > 1.2 * np.mean(known.latency_s)


def test_callers_that_wait_no_longer_leave_the_queue() -> None:
    """Far above capacity the server goes on answering in time."""
    outcome = simulate(profile_of({1: 0.01}), poisson(500, 5000), deadline_s=0.1)
    assert outcome.answered.sum() >= 0.95 * outcome.seconds / 0.01
    assert np.nanmax(outcome.latency_s) <= 0.1


def batcher_fates(seconds: dict[int, float], arrivals: Arrivals, deadline_s: float | None) -> list[str]:
    """What the batcher, on asyncio's own event loop in virtual time, makes of the same requests."""

    async def main(loop):
        executor = VirtualExecutor(loop)

        def infer(pixels):
            executor.take(seconds[len(pixels)])
            return np.zeros((len(pixels), 1), np.float32)

        batcher: Batcher = batcher_of(
            infer,
            row_shape=(1,),
            buckets=tuple(seconds),
            seconds_per_bucket=seconds,
            max_queue_rows=1024,
            max_queue_ms=2000.0,
            quiet_turns=1,
            clock=loop.clock,
            executor=executor,
        )
        row = np.zeros(1, np.uint8)
        fates = [""] * len(arrivals.seconds)

        async def call(number):
            deadline = None if deadline_s is None else loop.time() + deadline_s
            try:
                future = batcher.submit([row] * int(arrivals.rows[number]), deadline=deadline)
                async with asyncio.timeout_at(deadline):
                    await future
            except OverloadedError:
                fates[number] = "refused"
            except (DeadlineError, TimeoutError):
                fates[number] = "late"
            else:
                fates[number] = "answered"

        async with asyncio.TaskGroup() as calls:
            for number, when in enumerate(arrivals.seconds):
                await asyncio.sleep(max(0.0, when - loop.time()))
                calls.create_task(call(number))
        await batcher.drain()
        return fates

    return run_in_virtual_time(main)


@pytest.mark.parametrize(("rows", "deadline_s"), [(1, None), (1, 0.1), (3, 0.3), (40, None)])
def test_admission_refuses_as_the_batcher_on_asyncio_does(rows: int, deadline_s: float | None) -> None:
    seconds = {1: 0.004, 2: 0.007, 4: 0.012, 8: 0.022}
    arrivals = poisson(3 * 8 / 0.022 / rows, 400 if rows > 1 else 1500, rows)
    outcome = simulate(profile_of(seconds), arrivals, deadline_s=deadline_s)
    fates = np.select([outcome.refused, outcome.late], ["refused", "late"], "answered").tolist()
    expected = batcher_fates(seconds, arrivals, deadline_s)
    assert expected.count("refused") > 0
    assert np.mean(np.array(fates) == np.array(expected)) >= 0.99
    assert fates.count("refused") == pytest.approx(expected.count("refused"), rel=0.02)


def test_a_request_that_could_never_be_queued_is_refused() -> None:
    outcome = simulate(profile_of(), at(0.0, rows=3), options=ServingOptions(max_queue_rows=2))
    assert outcome.refused.all()


def test_no_arrivals_are_no_load() -> None:
    outcome = simulate(LANES, Arrivals(np.empty(0), np.empty(0, np.int32)))
    assert (len(outcome.latency_s), outcome.busy_share.tolist(), outcome.batches.tolist()) == (0, [0.0], [0])


def test_a_delay_and_a_target_are_the_batcher_s_own() -> None:
    arrivals = poisson(150, 1500)
    seconds = {1: 0.004, 2: 0.005, 4: 0.007, 8: 0.011}
    at_once, waits = (
        simulate(profile_of(seconds), arrivals, options=ServingOptions(max_delay_ms=ms)) for ms in (0.0, 30.0)
    )
    assert waits.batch_rows[0] > 2 * at_once.batch_rows[0]
    steered = simulate(profile_of(seconds), arrivals, options=ServingOptions(latency_target_ms=8.0))
    assert np.percentile(steered.latency_s, 99) < np.percentile(waits.latency_s, 99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrivals": at(1.0, 0.5)}, "not ascending"),
        ({"arrivals": at(-1.0)}, "not ascending"),
        ({"arrivals": at(float("nan"))}, "not ascending"),
        ({"arrivals": at(1.0, rows=0)}, "a request of 0 rows"),
        ({"arrivals": Arrivals(np.zeros(2), np.ones(3, np.int32))}, "expected (requests,) twice"),
        ({"replicas": 0}, "0 replicas"),
        ({"clients": 0}, "0 clients"),
        ({"deadline_s": 0.0}, "a deadline of 0 s"),
        ({"losses": [Loss(1.0, 2)]}, "expected one of 1 replicas"),
        ({"losses": [Loss(1.0, 0, -1.0)]}, "times from 0 on"),
        ({"losses": [Loss(float("inf"), 0)]}, "times from 0 on"),
        ({"options": ServingOptions(lanes=3)}, "measured with 1; measure one with --lanes 3"),
        ({"options": ServingOptions(max_batch=7)}, "has batches of 1 rows"),
        ({"options": ServingOptions(max_delay_ms=-1)}, "max_delay_ms -1"),
        ({"options": ServingOptions(latency_target_ms=0)}, "latency_target_ms 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        simulate(profile_of(), arguments.pop("arrivals", at(0.0)), **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_event_loop_is_left_behind_and_the_collector_works_again() -> None:
    simulate(LANES, poisson(50, 50), deadline_s=0.05)
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


async def test_it_can_be_called_on_an_event_loop() -> None:
    simulate(LANES, poisson(50, 50))
    assert asyncio.get_running_loop() is not None


def test_a_request_costs_less_than_a_few_hundred_lines_of_python() -> None:
    """A million requests in 20 s are 20 us each on a quiet machine; here a loop of Python's own is the measure."""

    def python_seconds() -> float:
        began = time.process_time()
        sum(number * number for number in range(200_000))
        return (time.process_time() - began) / 200_000

    arrivals = poisson(0.8 * LANES.rows_per_s, 4000)
    costs, units = [], []
    for _ in range(3):
        units.append(python_seconds())
        began = time.process_time()
        simulate(LANES, arrivals)
        costs.append((time.process_time() - began) / 4000)
    assert min(costs) / min(units) < 1500
