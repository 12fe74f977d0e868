"""Every inference RPC's life, with a codec of letters and a batcher that answers when the test says so."""

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from fuseline.serve.batching.batcher import BatchedRows
from fuseline.serve.errors import RequestError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.services.inference import Codec, Decode
from fuseline.serve.services.inference_calls import InferenceCalls
from fuseline.serve.services.statuses import Status
from tests.fakes.servicer_context import ServicerContext
from tests.serve.conftest import settings

BATCHED = BatchedRows(np.zeros((1, 1), np.float32), 0.0, 0.0, 1, np.zeros((1, 1), np.float32), 0)


class Letters(Codec[str, str]):
    """`a` is answered by `A`; `?` is a bad request; a capital is decoded first. It is its models' batcher, too."""

    backpressure = None

    def __init__(self) -> None:
        self.pending: dict[str, asyncio.Future[BatchedRows]] = {}

    parse = staticmethod(bytes.decode)

    def timeout_s(self, request: str) -> float | None:
        return None

    def model_name(self, request: str) -> str:
        return "letters"

    def priority(self, request: str) -> int:
        return 0

    def find(self, request: str) -> SimpleNamespace:
        return SimpleNamespace(name="letters", version="1", batcher=self)

    def rows(self, request: str, model: object) -> list[str] | Decode:
        if request == "?":
            raise RequestError("no letter")

        async def decode(_: float | None) -> tuple[list[str], None]:
            await asyncio.sleep(0)
            return [request], None

        return decode if request.isupper() else [request]

    def submit(self, rows: list[str], **_: object) -> asyncio.Future[BatchedRows]:
        self.pending[rows[0]] = asyncio.get_running_loop().create_future()
        return self.pending[rows[0]]

    def answer(self, request: str, *_: object) -> str:
        return request.upper()

    def settle(self, *letters: str) -> None:
        for letter in letters:
            self.pending[letter].set_result(BATCHED)


class StreamCall:
    """A stream under way, and its parts."""

    def __init__(self, *, in_order: bool) -> None:
        self.metrics = Metrics()
        self.codec = Letters()
        self.calls = InferenceCalls(self.metrics, settings(), asyncio.get_running_loop().time)
        self.context = ServicerContext()
        self.requests: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.task = asyncio.create_task(
            self.calls.stream("Spell", self.codec, self._requests(), self.context, message, in_order=in_order)
        )

    async def _requests(self) -> AsyncIterator[str]:
        while (request := await self.requests.get()) is not None:
            if isinstance(request, Exception):
                raise request
            yield request

    async def send(self, *requests: str | Exception | None) -> None:
        for request in requests:
            self.requests.put_nowait(request)
        await turns()

    @property
    def counts(self) -> dict[str, int]:
        return self.metrics.requests_by_code()


def message(request: str, answer: str | Status) -> str:
    return answer if isinstance(answer, str) else f"{request}: {answer.code.name}"


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("in_order", "written"), [(False, "CAB"), (True, "ABC")])
async def test_answers_are_written_as_soon_as_they_are_there_or_in_order(in_order: bool, written: str) -> None:
    call = StreamCall(in_order=in_order)
    await call.send("a", "b", "c", None)
    for letter in "cab":
        call.codec.settle(letter)
        await turns()
    await call.task
    assert call.context.written == list(written)
    assert call.counts == {"OK": 3}


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_request_counts_when_its_turn_to_be_answered_comes(in_order: bool) -> None:
    call = StreamCall(in_order=in_order)
    await call.send("a", "?", "B")
    bad = "?: INVALID_ARGUMENT"
    assert call.context.written == ([] if in_order else [bad])
    assert call.counts == ({} if in_order else {"INVALID_ARGUMENT": 1})
    call.codec.settle("a", "B")
    await turns()
    assert call.context.written == (["A", bad, "B"] if in_order else [bad, "A", "B"])
    assert call.counts == {"INVALID_ARGUMENT": 1, "OK": 2}
    await call.send(None)
    await call.task


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_cancelled_stream_gives_up_what_is_under_way_and_counts_it(in_order: bool) -> None:
    call = StreamCall(in_order=in_order)
    await call.send("a", "?", "b", "c")
    call.codec.settle("b")
    await turns()
    call.requests.put_nowait("D")
    # Read, and not one step of its decoding done.
    for _ in range(2):
        await asyncio.sleep(0)
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    await turns()
    assert call.counts == ({"CANCELLED": 5} if in_order else {"INVALID_ARGUMENT": 1, "OK": 1, "CANCELLED": 3})
    assert call.codec.pending["a"].cancelled()
    assert call.codec.pending["c"].cancelled()


@pytest.mark.parametrize("in_order", [False, True])
async def test_requests_are_answered_before_an_unforeseen_error_ends_their_stream(
    in_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    call = StreamCall(in_order=in_order)
    with caplog.at_level(logging.ERROR):
        await call.send("a", OSError("secret"))
        assert not call.task.done()
        call.codec.settle("a")
        with pytest.raises(grpc.aio.AbortError, match="INTERNAL.*its log has more under error") as caught:
            await call.task
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    assert call.context.written == ["A"]


@pytest.mark.parametrize("in_order", [False, True])
async def test_an_unforeseen_error_of_one_request_is_its_answer(in_order: bool) -> None:
    call = StreamCall(in_order=in_order)
    await call.send("a", "b", None)
    call.codec.pending["a"].set_exception(ZeroDivisionError())
    call.codec.settle("b")
    await call.task
    assert call.context.written == ["a: INTERNAL", "B"]
    assert call.counts == {"INTERNAL": 1, "OK": 1}


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_drain_reads_no_further_and_answers_what_was_read(in_order: bool) -> None:
    call = StreamCall(in_order=in_order)
    await call.send("a", "B")
    call.calls.refuse()
    await call.send("c")
    idle = asyncio.create_task(call.calls.idle())
    await turns()
    assert not idle.done()
    call.codec.settle("a", "B")
    with pytest.raises(grpc.aio.AbortError, match="UNAVAILABLE.*shutting down"):
        await call.task
    await idle
    assert call.context.written == ["A", "B"]
    assert call.counts == {"OK": 2, "UNAVAILABLE": 1}


@pytest.mark.parametrize("in_order", [False, True])
async def test_answers_that_the_client_has_yet_to_take_are_in_flight(in_order: bool) -> None:
    call = StreamCall(in_order=in_order)
    call.context.may_write.clear()
    letters = [chr(ord("a") + number) for number in range(26)]
    names = [first + second for first in letters for second in letters][:100]
    for name in names:
        call.requests.put_nowait(name)
    call.requests.put_nowait(None)
    for _ in range(200):
        await asyncio.sleep(0)
        for pending in call.codec.pending.values():
            if not pending.done():
                pending.set_result(BATCHED)
    assert len(call.codec.pending) == 64
    call.context.may_write.set()
    while not call.task.done():
        await asyncio.sleep(0)
        for pending in call.codec.pending.values():
            if not pending.done():
                pending.set_result(BATCHED)
    await call.task
    assert call.context.written == [name.upper() for name in names]


async def test_a_unary_call_is_answered_refused_or_cancelled_and_counted() -> None:
    metrics, codec = Metrics(), Letters()
    calls = InferenceCalls(metrics, settings(), asyncio.get_running_loop().time)

    def ask(request: str) -> asyncio.Task[str]:
        return asyncio.create_task(calls.answer("Spell", codec, request.encode(), ServicerContext()))

    raw, encoded, cancelled, bad = (ask(request) for request in ("a", "B", "c", "?"))
    await turns()
    codec.settle("a", "B")
    cancelled.cancel()
    assert (await raw, await encoded) == ("A", "B")
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(grpc.aio.AbortError, match="INVALID_ARGUMENT.*no letter"):
        await bad
    assert codec.pending["c"].cancelled()
    calls.refuse()
    with pytest.raises(grpc.aio.AbortError, match="UNAVAILABLE.*shutting down"):
        await ask("d")
    await calls.idle()
    assert metrics.requests_by_code() == {"OK": 2, "CANCELLED": 1, "INVALID_ARGUMENT": 1, "UNAVAILABLE": 1}
