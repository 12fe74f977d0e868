"""What one client can take of a server over gRPC: each bound has its flag, and what lies beyond it is told."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client import Client
from fuseline.serve.errors import ImageError
from fuseline.serve.services import inference_calls
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.decoding import DecodeThreads
from fuseline.serve.settings import Settings
from tests.fakes.clock import Clock
from tests.fakes.colours import encoded, plain
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import call
from tests.serve.processes import free_port

RED = ClassifyRequest(images=[Image(raw=plain("red").tobytes())])
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def own_channel(served: Served) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", OWN_CONNECTION)


async def refused(awaited: Any, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    assert caught.value.code() is code, caught.value
    return caught.value


def retry_ms(error: grpc.aio.AioRpcError) -> float:
    """The milliseconds of the error's RetryInfo."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    retry = RetryInfo()
    assert RpcStatus.FromString(details).details[0].Unpack(retry)  # type: ignore[arg-type]
    return retry.retry_delay.ToMilliseconds()


async def test_a_picture_of_too_many_pixels_is_refused_at_each_door_by_its_header(start_server: StartServer) -> None:
    served = await start_server(max_image_pixels=600, http_port=free_port())
    small, large = encoded(plain("red", 20, 30)), encoded(plain("red", 20, 31))
    await served.stub.Classify(ClassifyRequest(images=[Image(encoded=small)]))
    error = await refused(
        served.stub.Classify(ClassifyRequest(images=[Image(encoded=large)])), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert "31 x 20 = 620 pixels, at most 600 are accepted" in str(error.details())
    answer = await call(served, "POST", "/v1/classify", large)
    assert (answer.status, answer.headers["fuseline-error"]) == (400, "ImageError")
    assert (await call(served, "POST", "/v1/classify", small)).status == 200


async def test_one_clients_requests_under_way_are_bounded_over_all_its_calls_and_streams(
    start_server: StartServer,
) -> None:
    served = await start_server(max_requests_per_client=2, http_port=free_port())
    running = await served.busy_with(served.stub.Classify(RED))

    async def requests() -> AsyncIterator[ClassifyRequest]:
        yield RED
        yield RED

    stream = served.stub.ClassifyStream(requests())
    # The stream's first request is the second under way; its own second is refused, and so is a call of HTTP.
    first = await stream.read()
    assert first.error.error_name == "OverloadedError"
    assert first.error.retry_after_ms > 0
    error = await refused(served.stub.Classify(RED), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "2 requests of this client are under way" in str(error.details())
    assert retry_ms(error) == 100
    assert (await call(served, "POST", "/v1/classify", encoded(plain("red")))).status == 429
    # What tells about the server is no request.
    await served.stub.GetModel(GetModelRequest())
    served.backend.release()
    await asyncio.gather(running, stream.read())
    assert (await served.stub.Classify(RED)).results


def test_requests_of_clients_that_went_leave_nothing_behind() -> None:
    limits = CallLimits(Settings(max_requests_per_client=2))
    for number in range(1000):
        for _ in range(2):
            limits.begin(str(number))
        for _ in range(2):
            limits.end(str(number))
    assert limits._requests == {}


async def test_a_request_that_is_given_up_makes_room_for_another(start_server: StartServer) -> None:
    served = await start_server(max_requests_per_client=1)
    first = await served.busy_with(served.stub.Classify(RED))
    first.cancel()
    limits = served.server._service._calls._limits
    await served.until(lambda: not limits._requests)
    served.backend.release()
    assert (await served.stub.Classify(RED)).results


async def test_open_streams_are_bounded_and_one_that_ends_makes_room(start_server: StartServer) -> None:
    served = await start_server(max_streams=2)
    end = asyncio.Event()

    async def until_end() -> AsyncIterator[ClassifyRequest]:
        yield RED
        await end.wait()

    streams = [served.stub.ClassifyStream(until_end()) for _ in range(2)]
    for stream in streams:
        assert (await stream.read()).results
    third = served.stub.ClassifyStream(until_end())
    error = await refused(third.read(), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "2 streams are open, the most that are" in str(error.details())
    assert retry_ms(error) == 100
    assert (await served.stub.Classify(RED)).results
    end.set()
    for stream in streams:
        assert await stream.read() is grpc.aio.EOF
    again = served.stub.ClassifyStream(until_end())
    assert (await again.read()).results


async def test_connections_of_grpc_are_bounded_and_one_that_closes_makes_room(start_server: StartServer) -> None:
    served = await start_server(max_connections=2)
    async with own_channel(served) as first, own_channel(served) as third:
        await ClassifierStub(first).Classify(RED)  # type: ignore[no-untyped-call]
        second = own_channel(served)
        await ClassifierStub(second).Classify(RED)  # type: ignore[no-untyped-call]
        stub: Any = ClassifierStub(third)  # type: ignore[no-untyped-call]
        await refused(stub.Classify(RED, timeout=10), grpc.StatusCode.UNAVAILABLE)
        await ClassifierStub(first).Classify(RED)  # type: ignore[no-untyped-call]
        await second.close()
        assert (await stub.Classify(RED, timeout=30, wait_for_ready=True)).results


async def test_metadata_and_heads_are_bounded_alike(start_server: StartServer) -> None:
    served = await start_server(max_header_kb=8, http_port=free_port())
    assert (await served.stub.Classify(RED, metadata=(("note", "x" * 7000),))).results
    error = await refused(
        served.stub.Classify(RED, metadata=(("note", "x" * 9000),)), grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    assert "metadata" in str(error.details())
    assert (await call(served, "GET", "/v1/models", headers={"note": "x" * 7000})).status == 200
    # It is kept to within 16 KiB: that much may be parsed at once.
    assert (await call(served, "GET", "/v1/models", headers={"note": "x" * 40_000})).status == 431


@pytest.mark.parametrize(
    ("grpc_connections", "http_connections"), [(6, 2), pytest.param(100, 9, marks=pytest.mark.slow)]
)
async def test_no_request_fails_when_connections_age_out_under_load(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, grpc_connections: int, http_connections: int
) -> None:
    served = await start_server(max_connection_age_s=0.2, http_port=free_port())
    peers: set[str] = set()
    context_of_rpc = inference_calls.context_of_rpc

    def noted(context: Any, clock: Any, **known: Any) -> Any:
        peers.add(context.peer())
        return context_of_rpc(context, clock, **known)

    monkeypatch.setattr(inference_calls, "context_of_rpc", noted)
    ports: set[int] = set()

    async def call_until_aged(channel: grpc.aio.Channel) -> None:
        stub: Any = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        while len(peers) < grpc_connections or len(ports) < http_connections:
            assert (await stub.Classify(RED, timeout=30)).results

    def post_until_aged() -> None:
        with Client(f"http://127.0.0.1:{served.server.http_port}", retries=0) as client:
            while len(peers) < grpc_connections or len(ports) < http_connections:
                client.classify(plain("red"))
                connection = client._stub._of_thread.connection
                # After the last answer of a connection there is none.
                if connection.sock is not None:
                    ports.add(connection.sock.getsockname()[1])

    async with asyncio.timeout(30), own_channel(served) as one, own_channel(served) as other:
        await asyncio.gather(
            asyncio.to_thread(post_until_aged),
            *(call_until_aged(channel) for channel in (one, other) for _ in range(8)),
        )


async def test_a_stream_outlives_its_connections_age_by_the_grace_and_then_is_cut(start_server: StartServer) -> None:
    served = await start_server(max_connection_age_s=0.1, max_connection_age_grace_s=0.3)

    async def endless() -> AsyncIterator[ClassifyRequest]:
        while True:
            yield RED
            await asyncio.sleep(0.01)

    stream = served.stub.ClassifyStream(endless())

    async def answers() -> None:
        while (answer := await stream.read()) is not grpc.aio.EOF:
            assert answer.results

    async with asyncio.timeout(30):
        assert (await stream.read()).results
        await refused(answers(), grpc.StatusCode.UNAVAILABLE)


class HeldDecoder:
    """Decodes contents that are called `held` only once `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, content: str) -> str:
        if content == "held":
            self.begun.set()
            assert self.go.wait(30)
        return content.upper()


async def test_a_picture_whose_decoder_does_not_end_is_refused_in_time_and_its_thread_stays_counted() -> None:
    clock, decoder = Clock(), HeldDecoder()
    with ThreadPoolExecutor(2) as pool:
        threads = DecodeThreads(pool, 2, 0.05, clock)
        decoding = asyncio.create_task(threads.rows(decoder, ["held", "quick"]))
        await asyncio.to_thread(decoder.begun.wait, 30)
        await asyncio.sleep(0.1)
        assert not decoding.done()
        clock.now += 0.07
        async with asyncio.timeout(30):
            held, quick = await decoding
        assert isinstance(held, ImageError)
        assert "was not decoded within 0.05 s" in str(held)
        assert isinstance(quick, tuple)
        assert quick[0] == "QUICK"
        assert threads.threads == 1
        assert [row for row, _ in await threads.rows(decoder, ["next"])] == ["NEXT"]  # type: ignore[misc]
        decoder.go.set()
        async with asyncio.timeout(30):
            while threads._jobs:  # noqa: ASYNC110 the thread tells no one
                await asyncio.sleep(0.005)
        assert threads.threads == 2


async def test_time_in_the_pools_queue_is_not_decoding(start_server: StartServer) -> None:
    clock, decoder = Clock(), HeldDecoder()
    with ThreadPoolExecutor(1) as pool:
        threads = DecodeThreads(pool, 1, 0.05, clock)
        pool.submit(decoder, "held")
        waiting = asyncio.create_task(threads.rows(decoder, ["queued"]))
        await asyncio.to_thread(decoder.begun.wait, 30)
        clock.now += 100
        await asyncio.sleep(0.05)
        decoder.go.set()
        assert [row for row, _ in await waiting] == ["QUEUED"]  # type: ignore[misc]


async def test_a_slow_picture_is_refused_at_the_door(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_server(decode_timeout_s=0.5)
    from fuseline.serve import images

    class Time:
        """Each look at the clock comes a second after the last one."""

        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 1.0
            return cls.now

    monkeypatch.setattr(images, "time", Time)
    for kind in ("JPEG", "PNG"):
        request = ClassifyRequest(images=[Image(encoded=encoded(plain("red"), kind))])
        error = await refused(served.stub.Classify(request), grpc.StatusCode.INVALID_ARGUMENT)
        assert "takes too long to decode" in str(error.details())
