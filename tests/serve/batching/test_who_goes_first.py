"""Who goes first, in virtual time: small requests beside large ones, interactive before bulk, clients side by side."""

import functools

import pytest

from fuseline.serve.batching.requests import BULK, Caller
from tests.serve.batching.mixed_load import Kind, Waiting, closed_loops, open_loops
from tests.serve.batching.simulated_load import ALONE, CPU, GPU, LANE, Machine, closed_loop

MACHINES = {
    "CPU": Machine(CPU),
    "lanes": Machine(LANE, lanes=2, alone=ALONE),
    "GPU": Machine(GPU, noise=0.03, hiccups=0.0),
}
BATCH_S = {"CPU": CPU[16], "lanes": LANE[4], "GPU": GPU[32]}
"""Seconds of the largest batch."""

SECONDS = {"CPU": 20.0, "lanes": 20.0, "GPU": 0.5}


@functools.cache
def capacity(machine: str) -> float:
    return closed_loop(MACHINES[machine], callers=64, seconds=SECONDS[machine])


def rows_per_s(outcomes, *names):
    return sum(outcomes[name].goodput for name in names or outcomes)


@pytest.mark.parametrize("bulk_rows", [64, 128])
@pytest.mark.parametrize("machine", MACHINES)
def test_one_image_at_a_time_beside_bulk_callers_waits_for_two_batches_at_most(machine, bulk_rows):
    """The measured case: with 128 rows it was 2,036 ms on the CPU when rows started in the order of admission."""
    kinds = {"bulk": Waiting(2, bulk_rows)}
    alone = closed_loops(MACHINES[machine], kinds, seconds=SECONDS[machine])
    both = closed_loops(MACHINES[machine], kinds | {"small": Waiting(1)}, seconds=SECONDS[machine])
    # On the GPU they are two whole ones: the answer of one batch comes when the next has just begun.
    assert both["small"].percentile_ms(99) <= 2.1 * 1000 * BATCH_S[machine]
    assert rows_per_s(both) >= 0.97 * rows_per_s(alone), "what the small one gets is all that the others lose"


def test_batches_are_small_while_somebody_small_waits():
    """On a CPU that costs nothing, and the small request waits for a quarter of the largest batch's time."""
    outcomes = closed_loops(MACHINES["CPU"], {"bulk": Waiting(2, 128), "small": Waiting(1)})
    assert outcomes["small"].percentile_ms(99) <= 1.2 * 2 * 1000 * CPU[4]


def test_small_requests_that_never_run_out_leave_large_ones_their_share():
    outcomes = closed_loops(MACHINES["CPU"], {"bulk": Waiting(2, 128), "small": Waiting(64)})
    assert rows_per_s(outcomes, "bulk") >= 0.45 * rows_per_s(outcomes)


@pytest.mark.parametrize("machine", ["CPU", "lanes"])
@pytest.mark.parametrize(
    ("small", "large"),
    [
        (Kind(0.4, 1, 0.25), Kind(2, 16, 1.0)),
        (Kind(2, 1, 0.25), Kind(2, 16, 1.0)),
        (Kind(0.4, 1, 0.25), Kind(0.4, 16, 1.0)),
        (Kind(5, 1, 0.25), Kind(5, 8, 0.5)),
    ],
)
def test_predictions_know_what_starts_before_so_that_overload_costs_no_goodput(machine, small, large):
    """Loads are shares of the capacity."""
    kinds = {
        name: Kind(kind.rows_per_s * capacity(machine), kind.rows, kind.patience_s)
        for name, kind in (("small", small), ("large", large))
    }
    outcomes = open_loops(MACHINES[machine], kinds)
    offered = small.rows_per_s + large.rows_per_s
    assert rows_per_s(outcomes) >= 0.95 * min(1.0, offered) * capacity(machine)
    for outcome in outcomes.values():
        assert outcome.in_time >= 0.97
        assert outcome.hopeless == 0


def test_interactive_requests_go_before_bulk_ones_which_are_not_starved():
    bulk = Caller("", BULK)
    outcomes = closed_loops(MACHINES["CPU"], {"bulk": Waiting(64, 1, bulk), "interactive": Waiting(64)})
    assert 0.08 <= rows_per_s(outcomes, "bulk") / rows_per_s(outcomes) <= 0.12
    few = closed_loops(MACHINES["CPU"], {"bulk": Waiting(64, 1, bulk), "interactive": Waiting(1)})
    assert few["interactive"].percentile_ms(99) <= 2 * 1000 * BATCH_S["CPU"]
    assert rows_per_s(few) >= 0.97 * capacity("CPU")


def test_an_interactive_request_is_not_refused_for_bulk_rows():
    """Bulk requests alone would fill the queue, and wait longer than any deadline of the interactive ones."""
    kinds = {
        "bulk": Kind(5 * capacity("CPU"), 8, None, Caller("", BULK)),
        "interactive": Kind(0.5 * capacity("CPU"), 1, 0.3),
    }
    outcomes = open_loops(MACHINES["CPU"], kinds, max_queue_rows=256, max_queue_ms=1e9)
    interactive = outcomes["interactive"]
    assert interactive.in_time >= 0.99
    assert len(interactive.overloaded) <= 0.02 * interactive.admitted
    assert rows_per_s(outcomes) >= 0.95 * capacity("CPU")


@pytest.mark.parametrize("patience_s", [None, 0.25, 1.0])
def test_a_client_that_sends_ten_times_as_much_as_nine_others_gets_no_more_than_its_share(patience_s):
    share = capacity("CPU") / 10
    kinds = {f"client {number}": Kind(1.5 * share, 1, patience_s, Caller(str(number))) for number in range(9)}
    kinds["greedy"] = Kind(15 * share, 1, patience_s, Caller("greedy"))
    options = {"max_queue_rows": 128, "max_queue_ms": 1e9}
    outcomes = open_loops(MACHINES["CPU"], kinds, **options)
    others = [outcomes[name].goodput for name in kinds if name != "greedy"]
    assert min(others) >= 0.9 * share
    # With 250 ms hardly two batches may wait, so whoever asks more often finds room more often.
    assert outcomes["greedy"].goodput <= (1.35 if patience_s == 0.25 else 1.1) * share
    assert rows_per_s(outcomes) >= 0.95 * capacity("CPU")
    # Behind one proxy all are one client, who is served in the order of admission.
    as_one = {name: Kind(kind.rows_per_s, 1, patience_s) for name, kind in kinds.items()}
    assert open_loops(MACHINES["CPU"], as_one, **options)["greedy"].goodput >= 4 * share


def test_a_client_that_is_alone_may_fill_the_queue():
    outcome = open_loops(MACHINES["CPU"], {"one": Kind(1000, 1)}, seconds=1.0, max_queue_rows=64, max_queue_ms=1e9)[
        "one"
    ]
    assert outcome.admitted >= 64 + 100
    assert all("64 rows of at most 64 are queued" in str(error) for error in outcome.overloaded)
