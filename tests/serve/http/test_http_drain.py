"""A drain delivers the answers under way, and closes every connection in bounded time."""

import asyncio

import pytest

from tests.serve.http.apps import Held, Long, echo
from tests.serve.http.http_process import GET, post, serving, until

pytestmark = pytest.mark.usefixtures("plain_or_tls")


async def test_answers_under_way_are_delivered_and_then_their_connections_closed() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as one, http.connection() as two:
        await one.send(post(b"a") + post(b"b"))
        await held.came.acquire()
        await two.send(GET)
        await held.came.acquire()
        draining = asyncio.create_task(http.server.drain(20))
        await asyncio.sleep(0)
        held.go.set()
        assert (await one.answer()).body == b"POST /? 1 a"
        last = await one.answer()
        assert (last.body, last.headers["connection"]) == (b"POST /? 1 b", "close")
        assert (await two.answer()).headers["connection"] == "close"
        assert await one.is_closed()
        assert await two.is_closed()
        await draining


async def test_new_connections_are_answered_once_until_the_end() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as slow, http.connection() as idle:
        held.go.set()
        await idle.ask(GET)
        held.go.clear()
        await slow.send(GET)
        await held.came.acquire()
        await held.came.acquire()
        http.server.begin_drain()
        held.go.set()
        async with http.connection() as new:
            assert (await new.ask(GET)).headers["connection"] == "close"
            assert await new.is_closed()
        # One that was idle may have sent its request before it could know.
        assert (await idle.ask(GET)).headers["connection"] == "close"


async def test_who_has_just_connected_is_answered_as_the_server_ends() -> None:
    """A reset would be that of a server that died: a probe that comes at the end says so to whoever started it."""
    async with serving(echo) as http, http.connection() as early:
        await until(lambda: len(http.server.connections) == 1)
        draining = asyncio.create_task(http.server.drain(20))
        await asyncio.sleep(0)
        assert (await early.ask(GET)).status == 200
        await draining
        async with http.connection() as late:
            await until(lambda: len(http.server.connections) == 1)
            closing = asyncio.create_task(http.server.close())
            await asyncio.sleep(0)
            assert (await late.ask(GET)).status == 200
            await closing


async def test_a_request_that_is_not_whole_is_refused_and_an_idle_connection_closed() -> None:
    async with serving(echo) as http, http.connection() as part, http.connection() as idle:
        await idle.ask(GET)
        await part.send(post(b"abc")[:-1])
        await until(lambda: any(its.has_begun for its in http.server.connections))
        await http.server.drain(20)
        answer = await part.answer()
        assert answer.status == 503
        assert "shutting down" in answer.error
        assert await idle.is_closed()


async def test_a_client_that_does_not_read_holds_the_drain_up_no_longer_than_the_flush_time() -> None:
    async with serving(Long(20_000_000)) as http, http.connection(receive_buffer=4096) as connection:
        await connection.send(GET)
        connection.writer.transport.pause_reading()
        await until(lambda: any(its.has_unsent for its in http.server.connections))
        async with asyncio.timeout(5):
            await http.server.drain(0.1)
            await http.server.close()
            await until(lambda: not http.server.connections)


async def test_a_handler_that_still_runs_at_the_end_is_cancelled() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as connection:
        await connection.send(GET)
        await held.came.acquire()
        await http.server.drain(0.05)
        await http.server.close()
        await held.ended.acquire()
        assert held.cancelled == 1
        assert await connection.is_closed()
