"""Real servers with a tiny real model."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

import fuseline.serve.model
import fuseline.serve.model_source
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.backends.base import Backend
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.model import load_model
from fuseline.serve.server import Server
from fuseline.serve.settings import Settings
from tests.fakes.backends import SteeredBackend, opening
from tests.fakes.colours import write_colours_package
from tests.serve.access.token_files import TokenFile, written_token_file
from tests.serve.processes import free_port

Call = TypeVar("Call")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model."""
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short, as that of a Unix socket must be."""
    with tempfile.TemporaryDirectory(prefix="fl-") as path:
        yield Path(path)


def settings(**changes: Any) -> Settings:
    """A free port, no HTTP, and the runtime that starts fastest."""
    return Settings(**({"port": 0, "http_port": 0, "backend": "onnxruntime", "threads": 1} | changes))


@dataclass
class Served:
    """A server in this event loop, a connection to it, and the backend it uses."""

    server: Server
    channel: grpc.aio.Channel
    stub: ClassifierStub
    backend: SteeredBackend

    @property
    def queued_rows(self) -> int:
        return next(iter(self.server.repository)).batcher.queued_rows

    async def until_busy(self) -> None:
        """Return when the backend has begun one more batch."""
        assert await asyncio.to_thread(self.backend.started.acquire, timeout=30)

    async def busy_with(self, call: Call) -> Call:
        """Hold the backend, and return `call` when its batch has begun."""
        self.backend.hold()
        await self.until_busy()
        return call

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the event loop turn until `condition()`."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 what is waited for lies in the server, which tells no one
                await asyncio.sleep(0)


StartServer = Callable[..., Awaitable[Served]]


@pytest.fixture
async def start_server(package: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StartServer]:
    """Start servers: `served = await start_server(max_batch=4)`. They are released and drained at the end."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Served:
            return await stack.enter_async_context(_served(package, settings(**changes), monkeypatch))

        yield start


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """A file of token hashes, and the tokens that it knows."""
    return written_token_file(tmp_path)


@pytest.fixture
async def guarded(start_server: StartServer, tokens: TokenFile) -> Served:
    """A server that asks for those tokens."""
    return await start_server(token_hashes=tokens.path)


@asynccontextmanager
async def _served(package: Path, its_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    backends: list[SteeredBackend] = []

    def steered(real: Backend) -> SteeredBackend:
        backends.append(SteeredBackend(real))
        return backends[-1]

    monkeypatch.setattr(fuseline.serve.model, "open_backend", opening(steered))
    # A backend that a test holds must not hold the test's event loop too.
    load = partial(load_model, cpu=CpuBatching(inline_below_ms=0.0))
    monkeypatch.setattr(fuseline.serve.model_source, "load_model", load)
    server = Server.for_packages([package], its_settings)
    await server.start()
    backend = backends[0]
    while backend.started.acquire(blocking=False):
        pass
    backend.calls.clear()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            yield Served(server, channel, ClassifierStub(channel), backend)
        finally:
            backend.release()
            await server.drain()


@pytest.fixture(scope="module")
def live_address(live_server: Server) -> str:
    """The address of a server that runs in another thread, for synchronous clients."""
    return f"127.0.0.1:{live_server.port}"


@pytest.fixture(scope="module")
def live_http_address(live_server: Server) -> str:
    """The address of that server's HTTP port."""
    return f"http://127.0.0.1:{live_server.http_port}"


@pytest.fixture(scope="module")
def live_server(package: Path) -> Iterator[Server]:
    """A server that runs in another thread."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    server: Server | None = None

    async def start() -> Server:
        its_settings = settings(max_message_mb=1, max_images_per_request=8, http_port=free_port())
        server = Server.for_packages([package], its_settings)
        await server.start()
        return server

    def run() -> None:
        nonlocal server
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        assert server is not None
        yield server
    finally:
        if server is not None:
            asyncio.run_coroutine_threadsafe(server.drain(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
