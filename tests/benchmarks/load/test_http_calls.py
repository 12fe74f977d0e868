"""The HTTP side of the load generator, against small real servers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest

from fuseline.benchmarks.load.calls import CallError
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.load.http_calls import open_http_calls
from fuseline.benchmarks.load.open_loop import OpenLoad, run_open_loop
from fuseline.benchmarks.load.protocols import RawBytes
from fuseline.serve.errors import VerificationError

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Handle = Callable[[Reader, Writer], Awaitable[None]]


def answer_of(body: bytes, status: str = "200 OK", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body


async def request_of(reader: Reader) -> tuple[str, bytes]:
    """(request line, body) of the next one. Raises `IncompleteReadError` when there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    return head.split("\r\n")[0], await reader.readexactly(int(lengths[0]))


@asynccontextmanager
async def http_server(handle: Handle) -> AsyncIterator[str]:
    """Give each connection to `handle` until it returns; yields the address."""
    writers: list[Writer] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        writers.append(writer)
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has ended the connection
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


def answering(*answers: bytes) -> Handle:
    """Answer the requests of all connections in turn by `answers`, and the later ones by the last."""
    left = list(answers)

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            await request_of(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    return handle


async def reversing(reader: Reader, writer: Writer) -> None:
    while True:
        line, body = await request_of(reader)
        assert line == "POST /model HTTP/1.1"
        writer.write(answer_of(body[::-1]))


@contextmanager
def in_a_thread(handle: Handle) -> Iterator[str]:
    """As `http_server`, for tests that block; yields the address."""
    started, addresses = threading.Event(), []

    async def run() -> None:
        async with http_server(handle) as address:
            addresses.append(address)
            ended.append((asyncio.get_running_loop(), stop := asyncio.Event()))
            started.set()
            await stop.wait()

    ended: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield addresses[0]
    finally:
        loop, stop = ended[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def test_each_request_gets_its_own_answer_though_they_come_out_of_order() -> None:
    waiting: list[tuple[Writer, bytes]] = []
    connections = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        while True:
            _, body = await request_of(reader)
            waiting.append((writer, body))
            if len(waiting) == 5:
                for to, its_body in reversed(waiting):
                    to.write(answer_of(its_body[::-1]))
                waiting.clear()

    async with http_server(handle) as address, open_http_calls(address, "/model") as call:
        for turn in range(3):
            bodies = [bytes([turn, number]) * 1000 for number in range(5)]
            assert await asyncio.gather(*map(call, bodies)) == [body[::-1] for body in bodies]
    assert connections == 5


async def test_an_answer_may_come_in_pieces() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            _, body = await request_of(reader)
            for piece in answer_of(body, fields="server: slow\r\n"):
                writer.write(bytes([piece]))
                await writer.drain()
                await asyncio.sleep(0)

    async with http_server(handle) as address, open_http_calls(address, "/model") as call:
        assert [await call(b"one"), await call(b""), await call(b"three")] == [b"one", b"", b"three"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (answer_of(b"busy", "429 Too Many Requests"), "HTTP_429"),
        (answer_of(b"", "500"), "HTTP_500"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "UNREADABLE_ANSWER"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "UNREADABLE_ANSWER"),
        (b"SSH-2.0-server\r\n\r\n", "UNREADABLE_ANSWER"),
        (answer_of(b"one") + b"more", "UNREADABLE_ANSWER"),
        (b"H" * 70_000, "UNREADABLE_ANSWER"),
    ],
    ids=["busy", "broken", "chunked", "no number", "not HTTP", "too long", "endless head"],
)
async def test_a_refusal_is_told_and_the_next_request_answered(answer: bytes, status: str) -> None:
    async with (
        http_server(answering(answer, answer_of(b"fine"))) as address,
        open_http_calls(address, "/model") as call,
    ):
        with pytest.raises(CallError) as caught:
            await call(b"x")
        assert caught.value.status == status
        assert await call(b"y") == b"fine"


async def test_a_connection_that_ends_costs_its_request_only() -> None:
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        while True:
            await request_of(reader)
            requests += 1
            if requests == 1:
                writer.write(answer_of(b"whole")[:-2])
                return
            writer.write(answer_of(b"whole", fields="connection: close\r\n"))

    async with http_server(handle) as address, open_http_calls(address, "/model") as call:
        with pytest.raises(CallError, match="CONNECTION_LOST"):
            await call(b"x")
        assert [await call(b"y"), await call(b"z")] == [b"whole", b"whole"]


async def test_a_request_given_up_leaves_its_answer_to_nobody() -> None:
    release = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            _, body = await request_of(reader)
            if body == b"late":
                await release.wait()
            writer.write(answer_of(body))

    async with http_server(handle) as address, open_http_calls(address, "/model", timeout_s=0.05) as call:
        with pytest.raises(CallError, match="DEADLINE_EXCEEDED"):
            await call(b"late")
        release.set()
        assert await call(b"next") == b"next"


async def test_nobody_listening_is_a_lost_connection(unused_tcp_port: int) -> None:
    async with open_http_calls(f"127.0.0.1:{unused_tcp_port}", "/model") as call:
        with pytest.raises(CallError, match="CONNECTION_LOST"):
            await call(b"x")


async def test_streams_are_not_had() -> None:
    with pytest.raises(ValueError, match="no streams"):
        async with open_http_calls("127.0.0.1:1", "/model", streams=1):
            pass


REQUESTS = (b"abc", b"defg")


def test_a_closed_loop_goes_over_http() -> None:
    with in_a_thread(reversing) as address:
        result = run_closed_loop(
            ClosedLoad(
                address=address,
                requests=REQUESTS,
                burn_in_requests=REQUESTS,
                concurrency=4,
                seconds=0.3,
                burn_in_s=0.1,
                method="/model",
                transport=open_http_calls,
            )
        )
    assert not result.errors
    assert result.requests_per_s > 0
    assert {(index, answer) for index, answer in result.answers} == {(0, b"cba"), (1, b"gfed")}


def test_an_open_loop_goes_over_http() -> None:
    with in_a_thread(reversing) as address:
        result = run_open_loop(
            OpenLoad(
                address=address,
                requests=REQUESTS,
                burn_in_requests=REQUESTS,
                rate_per_s=100,
                seconds=0.3,
                burn_in_s=0.1,
                method="/model",
                transport=open_http_calls,
            )
        )
    assert not result.errors
    assert (result.due, result.answered) == (30, 30)
    assert {(index, answer) for index, answer in result.answers} == {(0, b"cba"), (1, b"gfed")}


def test_raw_logits_are_read_and_checked() -> None:
    wire = RawBytes("/model", classes=3)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert wire.request(pixels, with_logits=False) == bytes(range(24))
    assert wire.request([b"a file"], with_logits=False) == b"a file"
    logits = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
    wire.check("Mosec", "fp32", logits.tobytes(), logits)
    with pytest.raises(VerificationError, match="other answers"):
        wire.check("Mosec", "fp32", logits[::-1].tobytes(), logits)
    with pytest.raises(VerificationError, match=r"\(1, 3\), expected \(2, 3\)"):
        wire.check("Mosec", "fp32", logits[:1].tobytes(), logits)
    for broken in (b"", logits.tobytes()[:-1]):
        with pytest.raises(VerificationError, match="3 classes"):
            wire.check("Mosec", "fp32", broken, logits)


async def test_fields_of_ones_own_are_in_each_requests_head() -> None:
    heads: list[bytes] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(3)
            writer.write(answer_of(b"yes"))

    fields = (("Inference-Header-Content-Length", "2"), ("Content-Type", "application/octet-stream"))
    async with http_server(handle) as address, open_http_calls(address, "/infer", fields=fields) as call:
        assert [await call(b"one"), await call(b"two")] == [b"yes", b"yes"]
    assert len(heads) == 2
    for head in heads:
        assert b"\r\nInference-Header-Content-Length: 2\r\nContent-Type: application/octet-stream\r\n\r\n" in head
