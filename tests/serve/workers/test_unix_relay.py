"""The relay from Unix sockets to workers, whose place real sockets of this process take."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fuseline.serve.errors import InputError
from fuseline.serve.workers.unix_relay import UnixRelay

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Worker:
    """Accepts connections on a socket, and keeps them for the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.count = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        writers = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.count += 1
            writers.append(writer)
            self.accepted.put_nowait((reader, writer))

        async with await asyncio.start_unix_server(accept, self.path):
            yield
        for writer in writers:
            writer.close()


class Relayed:
    """A relay with two workers."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "public"
        self.workers = [Worker(folder / "1"), Worker(folder / "2")]
        self.ready = [worker.path for worker in self.workers]
        self.relay = UnixRelay(lambda: self.ready)

    async def call(self) -> Connection:
        return await asyncio.open_unix_connection(self.path)


@pytest.fixture
async def relayed(folder: Path) -> AsyncIterator[Relayed]:
    relayed = Relayed(folder)
    async with AsyncExitStack() as stack:
        for worker in relayed.workers:
            await stack.enter_async_context(worker.listening())
        relayed.relay.listen(f"unix:{relayed.path}")
        await relayed.relay.start()
        async with asyncio.timeout(30):
            yield relayed
        relayed.relay.close()
        await relayed.relay.finish()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 what is waited for lies in transports, which tell no one
        await asyncio.sleep(0)


@pytest.mark.parametrize("who_ends", ["caller", "worker"])
async def test_bytes_are_carried_both_ways_and_the_end_of_one_is_that_of_the_other(
    relayed: Relayed, who_ends: str
) -> None:
    reader, writer = await relayed.call()
    writer.write(b"question")
    its_reader, its_writer = await relayed.workers[0].accepted.get()
    assert await its_reader.readexactly(8) == b"question"
    its_writer.write(b"answer")
    if who_ends == "caller":
        assert await reader.readexactly(6) == b"answer"
        writer.close()
        assert await its_reader.read() == b""
    else:
        its_writer.close()
        assert await reader.read() == b"answer"
    for end in (writer, its_writer):
        end.close()


async def test_a_connection_goes_to_the_worker_that_has_the_fewest(relayed: Relayed) -> None:
    one, two = relayed.workers
    first, second = await relayed.call(), await relayed.call()
    await until(lambda: (one.count, two.count) == (1, 1))
    _, writer = await one.accepted.get()
    writer.close()
    assert await first[0].read() == b""
    first[1].close()
    third = await relayed.call()
    await until(lambda: one.count == 2)
    for _, end in (second, third):
        end.close()


async def test_who_does_not_read_holds_up_who_writes(relayed: Relayed) -> None:
    reader, caller = await relayed.call()
    _, writer = await relayed.workers[0].accepted.get()
    size = 2**26
    writer.write(bytes(size))
    # Little of it fits in the kernel's buffers and the relay's; the rest stays with the worker until it is read.
    for _ in range(1000):
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > size // 2
    assert len(await reader.readexactly(size)) == size
    for end in (caller, writer):
        end.close()


async def test_a_caller_is_let_go_where_no_worker_is_or_the_one_there_has_just_died(relayed: Relayed) -> None:
    relayed.ready = []
    reader, writer = await relayed.call()
    assert await reader.read() == b""
    writer.close()
    relayed.ready = [relayed.path.with_name("dead")]
    reader, writer = await relayed.call()
    assert await reader.read() == b""
    writer.close()


async def test_connections_wait_for_the_start(folder: Path) -> None:
    relayed = Relayed(folder)
    relayed.relay.listen(f"unix:{relayed.path}")
    async with relayed.workers[0].listening(), asyncio.timeout(30):
        reader, writer = await relayed.call()
        writer.write(b"early")
        relayed.ready = [relayed.workers[0].path]
        await relayed.relay.start()
        its_reader, its_writer = await relayed.workers[0].accepted.get()
        assert await its_reader.readexactly(5) == b"early"
        its_writer.close()
        assert await reader.read() == b""
        writer.close()
        relayed.relay.close()
    assert not relayed.path.exists()


async def test_an_address_in_use_is_refused_and_left_alone(relayed: Relayed) -> None:
    second = UnixRelay(list)
    with pytest.raises(InputError, match="listens there already"):
        second.listen(f"unix:{relayed.path}")
    second.close()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(relayed.path))
