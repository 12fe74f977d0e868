"""A worker's link to a backend that is played by the test."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.errors import BackendLostError
from fuseline.serve.model_package import load_package
from fuseline.serve.workers.backend_link import BackendChangedError, BackendLink
from fuseline.serve.workers.handshake import ServedModel, Welcome, welcome_worker
from tests.serve.colours import noise
from tests.serve.conftest import settings


def welcome(package: Path, *, largest_batch: int) -> Welcome:
    facts = BackendFacts(name="onnxruntime", precision="fp32", device="CPU", buckets=(largest_batch,))
    manifest = load_package(package).manifest
    return Welcome(
        models=(
            ServedModel(folder=package, manifest=manifest, backend=facts, backend_reason="a test", unsaturated_rows=1),
        )
    )


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(folder / "backend"))
        listener.listen()
        yield listener


async def accepted(listener: socket.socket, what: Welcome) -> tuple[socket.socket, list[int]]:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    return connection, await welcome_worker(connection, what)


async def test_it_connects_again_when_the_backend_is_back_with_the_same_memory(package: Path, tmp_path: Path) -> None:
    link = BackendLink(tmp_path / "backend", settings(max_queue_rows=8, max_images_per_request=8))
    told: asyncio.Queue[bool] = asyncio.Queue()
    opening = asyncio.create_task(link.open())
    async with asyncio.timeout(30), listening(tmp_path) as listener:
        inodes = []
        keeping = None
        for _ in range(2):
            connection, files = await accepted(listener, welcome(package, largest_batch=4))
            inodes.append([os.fstat(file).st_ino for file in files])
            for file in files:
                os.close(file)
            await opening
            if keeping is None:
                keeping = asyncio.create_task(link.keep(told.put))
            else:
                assert await told.get() is True
            request = link.models[0].batcher.submit(list(noise(2)))
            connection.close()
            with pytest.raises(BackendLostError):
                await request
            assert await told.get() is False
            with pytest.raises(BackendLostError):
                link.models[0].batcher.submit(list(noise(2)))
        assert len(inodes[0]) == 1
        assert inodes[0] == inodes[1]
        keeping.cancel()
    link.close()


async def test_a_backend_that_comes_back_with_something_else_is_refused(package: Path, tmp_path: Path) -> None:
    link = BackendLink(tmp_path / "backend", settings(max_queue_rows=8, max_images_per_request=8))
    opening = asyncio.create_task(link.open())

    def ignore(_: bool) -> Awaitable[None]:
        return asyncio.sleep(0)

    async with asyncio.timeout(30), listening(tmp_path) as listener:
        connection, files = await accepted(listener, welcome(package, largest_batch=4))
        await opening
        keeping = asyncio.create_task(link.keep(ignore))
        connection.close()
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        changed = welcome(package, largest_batch=8).model_dump_json()
        await asyncio.get_running_loop().sock_sendall(connection, changed.encode() + b"\n")
        with pytest.raises(BackendChangedError, match="other models"):
            await keeping
        connection.close()
    for file in files:
        os.close(file)
    link.close()
