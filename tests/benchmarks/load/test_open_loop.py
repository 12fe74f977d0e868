import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scipy import stats

from fuseline.benchmarks.harness.server_process import ServerProcess
from fuseline.benchmarks.load.open_loop import NOT_SENT, UNANSWERED, OpenLoad, poisson_arrivals, run_open_loop
from fuseline.protos.classify_pb2 import ClassifyResponse
from fuseline.serve.errors import BackendError, InputError
from tests.benchmarks.load.colour_requests import load, request
from tests.benchmarks.load.little_servers import METHOD, little_server
from tests.fakes.colours import LABELS


def open_load(address: str, **changes: object) -> OpenLoad:
    settings: dict = {
        "address": address,
        "requests": (b"timed",),
        "burn_in_requests": (b"burn-in",),
        "rate_per_s": 100.0,
        "seconds": 0.5,
        "burn_in_s": 0.1,
        "method": METHOD,
        "patience_s": 1.0,
    }
    return OpenLoad(**(settings | changes))


@contextmanager
def hanging_server() -> Iterator[str]:
    """A server that answers the first timed request, and those after it only when the context is left."""
    left, numbers = threading.Event(), [*[True] * 100, False]

    def only_the_first(request: bytes) -> bytes:
        if request == b"timed" and numbers.pop():
            left.wait(20)
        return b"answer"

    with little_server(only_the_first) as address:
        try:
            yield address
        finally:
            left.set()


def test_arrivals_are_a_poisson_process_of_the_asked_rate() -> None:
    arrivals = poisson_arrivals(1000, 20, seed=3)
    assert len(arrivals) == 20_000
    assert np.all(np.diff(arrivals) >= 0)
    assert 0 <= arrivals[0] <= arrivals[-1] < 20
    gaps = stats.kstest(np.diff(arrivals), stats.expon(scale=1e-3).cdf)
    assert gaps.pvalue > 0.01
    per_second = np.histogram(arrivals, 200, (0, 20))[0]
    assert per_second.var() / per_second.mean() == pytest.approx(1, abs=0.3)


def test_the_schedule_is_made_from_the_seed() -> None:
    assert np.array_equal(poisson_arrivals(50, 2, seed=1), poisson_arrivals(50, 2, seed=1))
    assert not np.array_equal(poisson_arrivals(50, 2, seed=1), poisson_arrivals(50, 2, seed=2))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_due_is_sent_and_its_answers_are_kept(colours_server: ServerProcess, processes: int) -> None:
    closed = load(colours_server.address)
    edges: list[float] = []
    plan = OpenLoad(
        address=closed.address,
        requests=closed.requests,
        burn_in_requests=closed.burn_in_requests,
        rate_per_s=60,
        seconds=0.5,
        processes=processes,
    )
    result = run_open_loop(plan, lambda: edges.append(time.monotonic()))

    assert not result.errors
    assert result.due == result.answered == len(result.latency_s) == len(result.send_lag_s) == 30
    assert result.send_lag_s.min() >= 0
    assert result.generator_cpu_share > 0
    assert len(edges) == 2
    answers = [(index, ClassifyResponse.FromString(answer)) for index, answer in result.answers]
    assert all(response.results[0].predictions[0].label == LABELS[index] for index, response in answers)
    assert {bool(response.results[0].logits) for _, response in answers} == {False, True}


def test_everyone_who_comes_during_a_stall_counts() -> None:
    stalled, open_door = itertools.count(), threading.Event()
    open_door.set()

    def stall_once(request: bytes) -> bytes:
        # The tenth timed request closes the door behind it, for half a second.
        if request == b"timed" and next(stalled) == 10:
            open_door.clear()
            threading.Timer(0.5, open_door.set).start()
        assert open_door.wait(10)
        return b"answer"

    with little_server(stall_once, threads=128) as address:
        result = run_open_loop(open_load(address, seconds=1.0, patience_s=10.0))
    assert result.answered == 100
    # Of 50 that are due in the stall, about half wait for half of it at least; a closed loop would see one.
    assert (result.latency_s > 0.25).sum() >= 15
    assert result.latency_s.max() > 0.4


def test_requests_without_an_answer_count_with_how_long_they_were_waited_for() -> None:
    numbers, never = itertools.count(), threading.Event()

    def every_second(request: bytes) -> bytes:
        if request == b"timed" and next(numbers) % 2:
            never.wait(20)
        return b"answer"

    with little_server(every_second) as address:
        result = run_open_loop(open_load(address, rate_per_s=40.0))
        never.set()
    assert (result.due, result.answered, len(result.latency_s)) == (20, 10, 20)
    assert result.errors == result.window_errors == {UNANSWERED: 10}
    # Due in the window, waited for until 1 s after it.
    assert (result.latency_s >= 1.0).sum() >= 10
    assert len(result.answered_latency_s) == 10


def test_what_the_generator_can_not_hold_is_told_and_counts_too() -> None:
    with hanging_server() as address:
        result = run_open_loop(open_load(address, rate_per_s=40.0, max_under_way=4))
    assert result.answered == 1
    assert result.errors == {UNANSWERED: 4, NOT_SENT: 15}
    assert len(result.latency_s) == result.due == 20


def test_refused_requests_are_errors_and_no_latencies(colours_server: ServerProcess) -> None:
    requests = (request("red"), request("red", model="nobody"))
    closed = load(colours_server.address)
    plan = OpenLoad(
        address=closed.address,
        requests=requests,
        burn_in_requests=closed.burn_in_requests,
        rate_per_s=40,
        seconds=0.5,
    )
    result = run_open_loop(plan)
    assert result.errors == {"NOT_FOUND": 10}
    assert result.answered == len(result.latency_s) == 10


def test_a_deadline_goes_to_the_server_when_it_is_to() -> None:
    with hanging_server() as address:
        result = run_open_loop(open_load(address, rate_per_s=20.0, timeout_s=0.05, patience_s=10.0))
    assert result.errors == {"DEADLINE_EXCEEDED": 9}


def test_nothing_answered_is_no_figure() -> None:
    def refuse(request: bytes) -> bytes:
        if request == b"timed":
            raise RuntimeError("out of order")
        return b"answer"

    with little_server(refuse) as address:
        with pytest.raises(BackendError, match="nothing of what was sent in 0.5 s was answered .*UNKNOWN"):
            run_open_loop(open_load(address, rate_per_s=20.0))
        result = run_open_loop(open_load(address, rate_per_s=20.0, least_answers=0))
    assert (result.due, result.answered, len(result.latency_s)) == (10, 0, 0)
    assert result.errors == {"UNKNOWN": 10}


def test_the_load_goes_on_after_the_window_and_only_the_window_counts() -> None:
    asked: list[tuple[bytes, float]] = []

    def refuse_the_untimed_from_the_second_on(request: bytes) -> bytes:
        asked.append((request, time.monotonic()))
        if request == b"burn-in" and len(asked) > 1:
            raise RuntimeError("out of order")
        return b"answer"

    with little_server(refuse_the_untimed_from_the_second_on) as address:
        result = run_open_loop(open_load(address, rate_per_s=40.0, cool_down_s=0.5))
    # 20 are due in the window, 20 more after it, 4 before.
    assert (result.due, result.answered) == (20, 20)
    assert result.errors == {"UNKNOWN": 24}
    assert result.window_errors == {}
    last_timed_s = max(at for request, at in asked if request == b"timed")
    assert sum(at > last_timed_s for request, at in asked if request == b"burn-in") == 20


def test_a_server_that_went_away_is_told_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="answered no request within 1 s"):
        run_open_loop(open_load("127.0.0.1:9"))
    assert "Traceback" not in capfd.readouterr().err


def test_less_than_one_request_is_no_load() -> None:
    with pytest.raises(InputError, match="measure longer"):
        run_open_loop(open_load("127.0.0.1:9", rate_per_s=0.5))
