import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.load.calls import CLASSIFY, CLASSIFY_STREAM, CallError, open_calls
from fuseline.benchmarks.load.closed_loop import run_closed_loop
from fuseline.protos.classify_pb2 import ClassifyResponse
from tests.benchmarks.load.colour_requests import load, request
from tests.benchmarks.load.little_servers import STREAM, little_server
from tests.fakes.colours import LABELS


@pytest.mark.parametrize(("method", "streams"), [(CLASSIFY, 0), (CLASSIFY_STREAM, 1), (CLASSIFY_STREAM, 3)])
async def test_every_request_gets_its_own_answer(colours_server: ServerProcess, method: str, streams: int) -> None:
    async with open_calls(colours_server.address, method, streams=streams) as call:
        colours = [str(colour) for colour in np.random.default_rng(0).choice(LABELS, 200)]
        answers = await asyncio.gather(*(call(request(colour)) for colour in colours))
    named = [ClassifyResponse.FromString(answer).results[0].predictions[0].label for answer in answers]
    assert named == colours


@pytest.mark.parametrize(("method", "streams"), [(CLASSIFY, 0), (CLASSIFY_STREAM, 1)])
async def test_a_refused_request_is_told_by_its_status_and_the_next_one_is_answered(
    colours_server: ServerProcess, method: str, streams: int
) -> None:
    async with open_calls(colours_server.address, method, streams=streams) as call:
        refused, answered = await asyncio.gather(
            call(request("red", model="nobody")), call(request("red")), return_exceptions=True
        )
    assert isinstance(refused, CallError)
    assert refused.status == "NOT_FOUND"
    assert isinstance(answered, bytes)


async def test_what_is_under_way_in_a_stream_that_ends_is_lost_and_the_next_request_opens_another() -> None:
    def one_answer(requests: Iterator[bytes]) -> Iterator[bytes]:
        yield next(requests)
        next(requests)

    with little_server(stream=one_answer) as address:
        async with open_calls(address, STREAM, streams=1) as call:
            first, second = await asyncio.gather(call(b"1"), call(b"2"), return_exceptions=True)
            assert first == b"1"
            assert isinstance(second, CallError)
            assert second.status == "STREAM_ENDED"
            assert await call(b"3") == b"3"


@pytest.mark.parametrize("answer", [b"no message", b"", ClassifyResponse(id="77").SerializeToString()])
async def test_an_answer_to_no_request_is_told(answer: bytes) -> None:
    def odd(requests: Iterator[bytes]) -> Iterator[bytes]:
        next(requests)
        yield answer

    with little_server(stream=odd, stream_method=CLASSIFY_STREAM) as address:
        async with open_calls(address, CLASSIFY_STREAM, streams=1) as call:
            with pytest.raises(CallError, match="UNREADABLE_ANSWER"):
                await call(b"")


async def test_a_server_that_dies_is_told(colours: Path) -> None:
    with started_server(colours, "--backend", "onnxruntime", "--threads", "1") as server:
        address = server.address
    for method, streams in ((CLASSIFY, 0), (CLASSIFY_STREAM, 1)):
        async with open_calls(address, method, streams=streams) as call:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await call(request("red"))


def test_a_closed_loop_through_streams(colours_server: ServerProcess) -> None:
    result = run_closed_loop(load(colours_server.address, method=CLASSIFY_STREAM, streams=2, concurrency=8))
    assert not result.errors
    assert result.requests_per_s * result.latency_s.mean() == pytest.approx(8, rel=0.5)
    for index, answer in result.answers:
        assert ClassifyResponse.FromString(answer).results[0].predictions[0].label == LABELS[index]
