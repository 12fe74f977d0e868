"""A worker's link to a backend that is played by the test."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.errors import BackendLostError
from fuseline.serve.lane_choice import LaneChoice
from fuseline.serve.model_package import load_package
from fuseline.serve.workers.backend_link import BackendChangedError, BackendLink
from fuseline.serve.workers.handshake import Announcement, ServedModel, announce
from fuseline.serve.workers.wire_format import ToBackend, reader_of_worker_records
from tests.fakes.colours import noise

ONE_MODEL = {"colours": 0}


def announcement(package: Path, *, largest_batch: int = 4, numbers: Mapping[str, int] = ONE_MODEL) -> Announcement:
    """What a backend says of models that differ by name alone, under these numbers."""
    facts = BackendFacts(name="onnxruntime", precision="fp32", device="CPU", buckets=(largest_batch,))
    manifest = load_package(package).manifest
    return Announcement(
        models={
            number: ServedModel(
                folder=package,
                manifest=manifest.model_copy(update={"name": name}),
                backend=facts,
                backend_reason="a test",
                lanes=LaneChoice(lanes=1, reason="a test"),
                policy=BatchPolicy((largest_batch,), max_queue_rows=8, max_queue_ms=1000.0),
            )
            for name, number in numbers.items()
        }
    )


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(folder / "backend"))
        listener.listen()
        yield listener


async def accepted(listener: socket.socket, what: Announcement) -> tuple[socket.socket, dict[int, int]]:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    return connection, await announce(connection, what)


async def test_it_connects_again_when_the_backend_is_back_with_the_same_memory(package: Path, tmp_path: Path) -> None:
    """Also when its models then have other numbers."""
    link = BackendLink(tmp_path / "backend")
    told: asyncio.Queue[bool] = asyncio.Queue()
    opening = asyncio.create_task(link.open())
    async with asyncio.timeout(30), listening(tmp_path) as listener:
        inodes = []
        keeping = None
        for numbers in ({"colours": 3, "shapes": 4}, {"shapes": 3, "colours": 9}):
            connection, files = await accepted(listener, announcement(package, numbers=numbers))
            inodes.append({name: os.fstat(files[number]).st_ino for name, number in numbers.items()})
            for file in files.values():
                os.close(file)
            await opening
            if keeping is None:
                keeping = asyncio.create_task(link.keep_connected(told.put))
            else:
                assert await told.get() is True
            batcher = next(model.batcher for model in link.models if model.name == "colours")
            request = batcher.submit(list(noise(2)))
            sent = await asyncio.get_running_loop().sock_recv(connection, 2**16)
            ((head, _),) = reader_of_worker_records().feed(sent)
            assert ToBackend(*head).model == numbers["colours"]
            connection.close()
            with pytest.raises(BackendLostError):
                await request
            assert await told.get() is False
            with pytest.raises(BackendLostError):
                batcher.submit(list(noise(2)))
        assert len(set(inodes[0].values())) == 2
        assert inodes[0] == inodes[1]
        keeping.cancel()
    link.close()


async def test_a_backend_that_comes_back_with_something_else_is_refused(package: Path, tmp_path: Path) -> None:
    link = BackendLink(tmp_path / "backend")
    opening = asyncio.create_task(link.open())

    def ignore(_: bool) -> Awaitable[None]:
        return asyncio.sleep(0)

    async with asyncio.timeout(30), listening(tmp_path) as listener:
        connection, files = await accepted(listener, announcement(package, largest_batch=4))
        await opening
        keeping = asyncio.create_task(link.keep_connected(ignore))
        connection.close()
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        changed = announcement(package, largest_batch=8).model_dump_json()
        await asyncio.get_running_loop().sock_sendall(connection, changed.encode() + b"\n")
        with pytest.raises(BackendChangedError, match="other models"):
            await keeping
        connection.close()
    for file in files.values():
        os.close(file)
    link.close()


async def test_a_worker_that_ends_before_it_has_sent_its_memory_is_no_worker(package: Path) -> None:
    backend_end, worker_end = socket.socketpair()
    with backend_end, worker_end:
        backend_end.setblocking(False)
        greeting = asyncio.create_task(announce(backend_end, announcement(package)))
        await asyncio.sleep(0)
        worker_end.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError, match="before it had sent its memory"):
            await greeting
