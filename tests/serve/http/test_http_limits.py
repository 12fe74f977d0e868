"""What clients can take of a server is bounded: bytes, connections, time. The next request is served."""

import asyncio
import errno
import socket
import tracemalloc
import zlib
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvicorn

from fuseline.serve.http.http_limits import HttpLimits, http_limits
from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.settings import Settings
from tests.serve.http.apps import Held, Long, echo
from tests.serve.http.http_process import GET, Http, post, serving, until

pytestmark = pytest.mark.usefixtures("plain_or_tls")

CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes() -> None:
    async with serving(echo, max_body_bytes=1000) as http:
        async with http.connection() as connection:
            assert (await connection.ask(post(bytes(1000)))).status == 200
            answer = await connection.ask(post(bytes(1001))[:-1001])
            assert answer.status == 413
            assert "more than 1000 bytes" in answer.error
            assert await connection.is_closed()
        assert (await http.ask(GET)).status == 200


async def test_a_chunked_body_is_refused_once_it_is_too_large() -> None:
    async with serving(echo, max_body_bytes=100_000) as http, http.connection() as connection:
        await connection.send(CHUNKED)
        for _ in range(100):
            await connection.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
        assert (await connection.ask(b"1\r\nx\r\n")).status == 413
        assert await connection.is_closed()


async def test_a_client_that_sends_all_of_a_large_body_first_still_reads_the_refusal() -> None:
    async with serving(echo, max_body_bytes=1000) as http, http.connection() as connection:
        await connection.send(post(bytes(30_000_000)))
        assert (await connection.answer()).status == 413


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"name: value\r\n" * 5000 + b"\r\n",
        b"GET / HTTP/1.1\r\nname: " + b"v" * 50_000,
        b"GET / HTTP/1.1\r\n" + b"n" * 50_000,
        b"\r\n" * 25_000,
        CHUNKED + b"1\r\nx\r\n0\r\n" + b"trailer: value\r\n" * 5000,
        CHUNKED + b"1\r\nx\r\n0\r\ntrailer: " + b"v" * 50_000,
        CHUNKED + b"1;" + b"e" * 50_000,
    ],
    ids=["target", "fields", "value", "name", "empty lines", "trailers", "trailer", "extension"],
)
@pytest.mark.parametrize("step", [100_000, 1000])
async def test_header_fields_are_bounded(data: bytes, step: int) -> None:
    async with serving(echo) as http:
        async with http.connection() as connection:
            for start in range(0, len(data), step):
                await connection.send(data[start : start + step])
            answer = await connection.answer()
            assert answer.status == 431
            assert "32768" in answer.error
        assert (await http.ask(b"GET / HTTP/1.1\r\nname: " + b"v" * 30_000 + b"\r\n\r\n")).status == 200


async def test_zeros_that_were_compressed_take_no_more_memory_than_a_body_may() -> None:
    bomb = zlib.compress(bytes(64_000_000), wbits=31)
    assert len(bomb) < 70_000
    async with serving(echo, max_body_bytes=4_000_000) as http:
        tracemalloc.start()
        try:
            answer = await http.ask(post(bomb, "Content-Encoding: gzip"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answer.status == 413
        assert peak < 4 * 4_000_000
        assert (await http.ask(GET)).status == 200


async def test_a_body_in_chunks_of_one_byte_takes_no_more_memory_than_its_bytes() -> None:
    async with serving(echo) as http, http.connection() as connection:
        await connection.send(CHUNKED)
        tracemalloc.start()
        try:
            for _ in range(30):
                await connection.send(b"1\r\nx\r\n" * 10_000)
            answer = await connection.ask(b"0\r\n\r\n")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answer.body.startswith(b"POST /? 300000 ")
        assert peak < 3_000_000


async def test_pipelined_requests_take_bounded_memory_while_the_first_is_answered() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as connection:
        await connection.send(GET)
        await held.came.acquire()
        tracemalloc.start()
        try:
            sending = asyncio.create_task(connection.send(b"GET / HTTP/1.1\r\n\r\n" * 500_000))
            for _ in range(200):
                await asyncio.sleep(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        sending.cancel()
        # The client's own 9 MB are among them, twice, over TLS once more.
        assert peak < (2 if http.tls is None else 3) * 9_000_000 + 6_000_000


async def test_bodies_of_all_connections_together_are_bounded_until_they_are_answered() -> None:
    held = Held()
    async with serving(held, max_total_bytes=100_000) as http, AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(http.connection()) for _ in range(4)]
        for connection in connections[:3]:
            await connection.send(post(bytes(30_000)))
            await held.came.acquire()
        refusal = await connections[3].ask(post(bytes(30_000)))
        assert (refusal.status, refusal.headers["retry-after"]) == (503, "1")
        assert "100000 bytes" in refusal.error
        held.go.set()
        for connection in connections[:3]:
            assert (await connection.answer()).status == 200
        # One that goes away halfway is not counted any more.
        async with http.connection() as halfway:
            await halfway.send(post(bytes(90_000))[:-10])
            await until(lambda: any(its.has_begun for its in http.server.connections))
        async with asyncio.timeout(10):
            while (await connections[0].ask(post(bytes(90_000)))).status != 200:
                connections[0] = await stack.enter_async_context(http.connection())


async def test_a_decompressed_body_counts_in_the_total() -> None:
    async with serving(echo, max_total_bytes=100_000) as http:
        zeros = zlib.compress(bytes(200_000), wbits=31)
        assert (await http.ask(post(zeros, "Content-Encoding: gzip"))).status == 503
        assert (await http.ask(post(bytes(90_000)))).status == 200


async def test_connections_beyond_the_limit_are_told_so_and_the_others_served() -> None:
    async with serving(echo, max_connections=3) as http, AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(http.connection()) for _ in range(3)]
        for connection in connections:
            assert (await connection.ask(GET)).status == 200
        answer = await http.ask(GET)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "3 connections are open" in answer.error
        assert (await connections[0].ask(GET)).status == 200
        connections[1].writer.close()
        await connections[1].writer.wait_closed()
        async with asyncio.timeout(10):
            while (await http.ask(GET)).status != 200:
                pass


class FullListener(socket.socket):
    """A listening socket for which the process has no file left, until `has_room`."""

    has_room = False
    asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if not self.has_room:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_when_no_file_is_left_connections_wait_and_the_event_loop_does_not_spin() -> None:
    listener = FullListener()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = HttpServer(echo, listener, HttpLimits(sweep_s=0.02))
    await server.start()
    try:
        async with Http(server, listener.getsockname()).connection() as connection:
            await connection.send(GET)
            await asyncio.sleep(0.1)
            assert 1 <= listener.asked <= 6
            listener.has_room = True
            assert (await connection.answer()).status == 200
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("sent", "limit", "part"),
    [
        (b"GET / HTTP/1.1\r\nname: v", {"head_s": 0.05}, "head"),
        (post(b"abc")[:-1], {"body_s": 0.05}, "body"),
        (CHUNKED + b"1\r\nx\r\n", {"body_s": 0.05}, "body"),
    ],
)
async def test_a_request_that_is_not_whole_in_time_is_refused(sent: bytes, limit: dict[str, float], part: str) -> None:
    async with serving(echo, **limit) as http, http.connection() as connection:
        assert (await connection.ask(GET)).status == 200
        answer = await connection.ask(sent)
        assert answer.status == 408
        assert f"{part} was not complete within 0.05 s" in answer.error
        assert await connection.is_closed()


async def test_a_chunked_body_that_never_ends_is_refused_although_its_bytes_keep_coming() -> None:
    async with serving(echo, body_s=0.1) as http, http.connection() as connection:
        await connection.send(CHUNKED)

        async def trickle() -> None:
            while True:
                await connection.send(b"1\r\nx\r\n")
                await asyncio.sleep(0.005)

        trickling = asyncio.create_task(trickle())
        assert (await connection.answer()).status == 408
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


async def test_connections_that_send_nothing_are_closed() -> None:
    async with serving(echo, head_s=0.05) as http, http.connection() as connection:
        assert await connection.is_closed()
    async with serving(echo, idle_s=0.05) as http, http.connection() as connection:
        assert (await connection.ask(GET)).status == 200
        assert await connection.is_closed()


async def test_a_request_is_not_cut_while_it_is_answered() -> None:
    held = Held()
    short = {"head_s": 0.01, "body_s": 0.01, "idle_s": 0.01, "answer_s": 0.01}
    async with serving(held, **short) as http, http.connection() as connection:
        await connection.send(post(b"x"))
        await held.came.acquire()
        await asyncio.sleep(0.2)
        held.go.set()
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize("request_", [GET, b"GET / HTTP/1.0\r\n\r\n"], ids=["keep-alive", "closing"])
async def test_a_client_that_does_not_read_its_answer_is_cut(request_: bytes) -> None:
    async with serving(Long(20_000_000), answer_s=0.1) as http:
        async with http.connection(receive_buffer=4096) as connection:
            await connection.send(request_)
            connection.writer.transport.pause_reading()
            await until(lambda: not http.server.connections)
        async with http.connection() as connection:
            await connection.send(b"HEAD / HTTP/1.1\r\n\r\n")
            assert (await connection.answer(has_body=False)).status == 200


async def test_a_client_that_refuses_to_leave_after_a_refusal_is_cut() -> None:
    async with serving(echo, linger_s=0.05) as http, http.connection() as connection:
        assert (await connection.ask(b"\x00\r\n\r\n")).status == 400
        await until(lambda: not http.server.connections)


async def test_answers_that_are_not_read_count_in_the_total() -> None:
    async with serving(Long(20_000_000), max_total_bytes=10_000_000, answer_s=60) as http:
        async with http.connection(receive_buffer=4096) as connection:
            await connection.send(GET)
            connection.writer.transport.pause_reading()
            await until(lambda: any(its.has_unsent for its in http.server.connections))
            assert (await http.ask(post(b"x"))).status == 503
        async with asyncio.timeout(10):
            while (await http.ask(post(b"x"))).status != 200:
                pass


async def test_a_server_without_connections_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, on_tick = 0, uvicorn.Server.on_tick

    async def counted(self: uvicorn.Server, counter: int) -> bool:
        nonlocal looks
        looks += 1
        return await on_tick(self, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    async with serving(echo, sweep_s=0.005) as http:
        async with http.connection() as connection:
            assert "date" in (await connection.ask(GET)).headers
            await until(lambda: looks > 3)
        await until(lambda: not http.server.connections)
        await asyncio.sleep(0.03)
        before = looks
        await asyncio.sleep(0.1)
        assert looks == before


def test_the_limits_follow_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    small, large = http_limits(Settings(max_message_mb=1)), http_limits(Settings(max_message_mb=1024))
    assert (small.max_body_bytes, small.max_total_bytes, small.max_connections) == (2**20, 2**28, 512)
    assert (large.max_body_bytes, large.max_total_bytes) == (2**30, 2**32)
    told = http_limits(Settings(max_connections=3000, max_header_kb=8, max_connection_age_s=60))
    assert (told.max_connections, told.max_head_bytes, told.age_s) == (3000, 8192, 60.0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert http_limits(Settings()).max_connections == 1024


async def test_an_old_connection_closes_after_its_answer_and_not_before() -> None:
    async with serving(echo, age_s=0.05) as http, http.connection() as connection:
        first = await connection.ask(GET)
        assert "connection" not in first.headers
        await until(lambda: any(its.is_old() for its in http.server.connections))
        # It still takes a request, whose answer says that it is the last.
        last = await connection.ask(GET)
        assert (last.status, last.headers["connection"]) == (200, "close")
        assert await connection.is_closed()


async def test_requests_that_follow_on_an_old_connection_are_answered_all_the_same() -> None:
    async with serving(echo, age_s=0.05) as http, http.connection() as connection:
        await connection.ask(GET)
        await until(lambda: any(its.is_old() for its in http.server.connections))
        await connection.send(GET * 3)
        answers = [await connection.answer() for _ in range(3)]
        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
        assert await connection.is_closed()
