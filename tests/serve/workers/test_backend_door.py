"""The door between workers and the backend process."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from fuseline.serve.workers.backend_door import backend_door, connect_through, next_through
from fuseline.serve.workers.worker_memory import WorkerMemory

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    outer, inner = backend_door()
    with outer, inner:
        yield outer, inner


@pytest.fixture
def memory() -> Iterator[WorkerMemory]:
    memory = WorkerMemory()
    yield memory
    memory.close()


async def test_what_comes_through_is_a_connection_with_the_workers_memory_in_the_order_of_coming(
    ends: Ends, memory: WorkerMemory
) -> None:
    outer, inner = ends
    coming = asyncio.create_task(next_through(inner))
    await asyncio.sleep(0)
    with connect_through(outer, memory.file) as first, connect_through(outer, memory.file) as second:
        for worker in (first, second):
            backend, file = await coming
            with backend:
                worker.send(b"a question")
                assert backend.recv(64) == b"a question"
                assert os.fstat(file).st_ino == os.fstat(memory.file).st_ino
                os.close(file)
                peer = backend.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
                assert int.from_bytes(peer, "little") == os.getpid()
            coming = asyncio.create_task(next_through(inner))
    coming.cancel()
    with suppress(asyncio.CancelledError):
        await coming


async def test_a_worker_that_ended_before_it_was_let_in_is_a_connection_that_ends(
    ends: Ends, memory: WorkerMemory
) -> None:
    outer, inner = ends
    connect_through(outer, memory.file).close()
    backend, file = await next_through(inner)
    with backend:
        assert backend.recv(64) == b""
    os.close(file)


async def test_more_than_may_wait_are_refused_at_once_and_come_through_later(ends: Ends, memory: WorkerMemory) -> None:
    outer, inner = ends
    with ExitStack() as stack:
        waiting = 0
        with suppress(BlockingIOError):
            while waiting < 10_000:
                stack.enter_context(connect_through(outer, memory.file))
                waiting += 1
        assert 8 <= waiting < 10_000
        for _ in range(waiting):
            backend, file = await next_through(inner)
            backend.close()
            os.close(file)
        connect_through(outer, memory.file).close()
