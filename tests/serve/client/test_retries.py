"""When a client tries again, in virtual time, and against a real server."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from fuseline.serve import errors
from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.client import async_client as async_client_module
from fuseline.serve.client.retries import RetryPolicy, await_with_retries, call_with_retries
from fuseline.serve.services.statuses import STATUS_CODE_OF_ERROR, error_from_status
from tests.fakes.clock import Clock
from tests.fakes.colours import plain
from tests.fakes.virtual_time import run_in_virtual_time
from tests.serve.conftest import StartServer


def told(error_class: type[errors.FuselineError], retry_after_s: float | None = None) -> errors.FuselineError:
    """The error that a client makes of the server's `error_class`."""
    return error_from_status(STATUS_CODE_OF_ERROR[error_class], "no", error_class.__name__, retry_after_s)


OVERLOADED = errors.OverloadedError


class Server:
    """Answers the call whose number is in `answers`, and fails all others; each takes `seconds`."""

    def __init__(self, clock: Clock, answers_from: int, error: Callable[[], errors.FuselineError], seconds: float = 0):
        self._clock = clock
        self._answers_from = answers_from
        self._error = error
        self._seconds = seconds
        self.times: list[float] = []
        self.left: list[float | None] = []

    def __call__(self, left_s: float | None) -> str:
        self.times.append(self._clock.now)
        self.left.append(left_s)
        self._clock.now += self._seconds
        if len(self.times) > self._answers_from:
            return "answer"
        raise self._error()


def called(server: Server, clock: Clock, timeout_s: float | None, retries: int = 2, rand: float = 1.0) -> str:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    policy = RetryPolicy(retries, lambda: rand)
    return call_with_retries(server, timeout_s, policy, clock=clock, sleep=sleep)


@pytest.mark.parametrize("error_class", STATUS_CODE_OF_ERROR)
def test_only_what_is_unavailable_or_exhausted_is_tried_again(error_class: type[errors.FuselineError]) -> None:
    clock = Clock(0.0)
    server = Server(clock, 1, lambda: told(error_class))
    if STATUS_CODE_OF_ERROR[error_class] in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        assert called(server, clock, 30.0) == "answer"
        assert len(server.times) == 2
    else:
        with pytest.raises(error_class):
            called(server, clock, 30.0)
        assert len(server.times) == 1


def test_waits_grow_and_are_random_between_nothing_and_their_bound() -> None:
    for rand, waits in ((1.0, [0.1, 0.2, 0.4, 0.8]), (0.5, [0.05, 0.1, 0.2, 0.4]), (0.0, [0.0] * 4)):
        clock = Clock(0.0)
        server = Server(clock, 4, lambda: told(errors.BackendLostError))
        assert called(server, clock, None, retries=4, rand=rand) == "answer"
        found = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
        assert found == pytest.approx(waits)


def test_the_last_error_is_raised_when_the_attempts_are_used_up() -> None:
    clock, numbers = Clock(0.0), iter(range(9))
    server = Server(clock, 9, lambda: error_from_status(grpc.StatusCode.UNAVAILABLE, str(next(numbers))))
    with pytest.raises(errors.ShuttingDownError, match="2"):
        called(server, clock, None, retries=2)
    assert len(server.times) == 3
    server = Server(clock, 9, lambda: told(OVERLOADED))
    with pytest.raises(OVERLOADED):
        called(server, clock, None, retries=0)
    assert len(server.times) == 1


def test_no_attempt_comes_before_the_servers_word() -> None:
    clock = Clock(0.0)
    server = Server(clock, 1, lambda: told(OVERLOADED, 3.0))
    assert called(server, clock, 30.0, rand=0.5) == "answer"
    assert server.times == [0.0, 3.05]


def test_nothing_is_waited_for_that_would_come_too_late() -> None:
    clock = Clock(0.0)
    server = Server(clock, 9, lambda: told(OVERLOADED, 3.0), seconds=0.5)
    with pytest.raises(OVERLOADED):
        called(server, clock, 3.5)
    assert clock.now == 0.5


def test_each_attempt_has_what_is_left_of_the_deadline() -> None:
    clock = Clock(0.0)
    server = Server(clock, 2, lambda: told(OVERLOADED, 1.0), seconds=0.5)
    assert called(server, clock, 10.0, rand=0.0) == "answer"
    assert server.left == [10.0, 8.5, 7.0]
    assert Server(clock, 0, lambda: told(OVERLOADED)).left == []


def test_a_client_whose_calls_mostly_fail_stops_trying_again_until_some_succeed() -> None:
    policy = RetryPolicy(10, lambda: 0.0)
    failure = told(OVERLOADED)
    waits = [policy.wait_s(0, failure, None) for _ in range(10)]
    assert waits == [0.0] * 4 + [None] * 6
    for _ in range(50):
        policy.note_success()
    assert policy.wait_s(0, failure, None) is None
    for _ in range(30):
        policy.note_success()
    assert policy.wait_s(0, failure, None) == 0.0


def test_an_error_that_will_not_pass_costs_no_budget() -> None:
    policy = RetryPolicy(10, lambda: 0.0)
    for _ in range(100):
        assert policy.wait_s(0, told(errors.ImageError), None) is None
    assert policy.wait_s(0, told(OVERLOADED), None) == 0.0


def test_the_event_loop_waits_as_threads_do() -> None:
    async def main(loop: Any) -> None:
        times: list[float] = []

        async def call(left_s: float | None) -> str:
            times.append(loop.time())
            await asyncio.sleep(0.5)
            if len(times) < 3:
                raise told(OVERLOADED, 2.0)
            assert left_s is not None
            return f"{left_s:g} s left"

        policy = RetryPolicy(2, lambda: 0.0)
        assert await await_with_retries(call, 10.0, policy, clock=loop.time) == "5 s left"
        assert times == [0.0, 2.5, 5.0]

    run_in_virtual_time(main)


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_no_server_is_tried_again_and_told(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    attempts: list[float | None] = []

    def wait_s(attempt: int, error: errors.FuselineError, left_s: float | None) -> float | None:
        assert error.may_pass
        attempts.append(left_s)
        return 0.0 if attempt == 0 else None

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Client(f"{scheme}127.0.0.1:{taken.getsockname()[1]}") as client:
            monkeypatch.setattr(client._retries, "wait_s", wait_s)
            with pytest.raises(errors.InputError, match="no server answers"):
                client.model()
    assert len(attempts) == 2


async def test_a_call_that_a_full_server_refuses_is_answered_later_and_a_stream_is_not_repeated(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server(max_queue_rows=1, max_images_per_request=1, max_batch=1, lanes=1)
    address = f"127.0.0.1:{served.server.port}"
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        served.backend.release()
        await served.until(lambda: not served.queued_rows)

    async def with_sleep(call: Any, timeout_s: Any, policy: Any) -> Any:
        return await await_with_retries(call, timeout_s, policy, sleep=sleep)

    monkeypatch.setattr(async_client_module, "await_with_retries", with_sleep)
    async with AsyncClient(address) as client:
        await client.model()
        computed = await served.busy_with(asyncio.create_task(client.classify(plain("red"))))
        queued = asyncio.create_task(client.classify(plain("red")))
        await served.until(lambda: served.queued_rows == 1)
        streamed = [item.error async for item in client.classify_stream([plain("red")])]
        assert [type(error) for error in streamed] == [OVERLOADED]
        assert slept == []
        answer = await client.classify(plain("blue"))
        assert answer.results[0].predictions[0].label == "blue"
        assert len(slept) >= 1
        await asyncio.gather(computed, queued)
