"""The HTTP listener of one process, on the running event loop."""

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of what clients can take of an HTTP server."""

    max_body_bytes: int = 64 * 2**20
    """Largest body of a request, also after its decompression."""
    sweep_s: float = 1.0
    """Seconds between two looks at the open connections."""


class HttpServer:
    """Answers what comes to a listening socket by an ASGI application. `start`, then `close`, on one event loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: HttpLimits) -> None:
        """Serve `app` on `listener`, which belongs to this server from now on."""
        config = uvicorn.Config(
            app,
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        self._config = config
        self._uvicorn = uvicorn.Server(config)
        self._listener = listener
        self._limits = limits
        self._sweeping: asyncio.Task[None] | None = None
        self._adopting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections from now on."""
        self._listener.setblocking(False)
        await self._uvicorn.on_tick(0)
        self._sweeping = asyncio.create_task(self._sweep())
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def drain(self, flush_s: float) -> None:
        """Return when answers under way are delivered, or after `flush_s`."""
        state = self._uvicorn.server_state
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=flush_s)

    async def close(self) -> None:
        """Close the listener and every connection."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._uvicorn.server_state.connections):
            connection.shutdown()

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            task = asyncio.create_task(self._adopt(connection))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _adopt(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: HttpToolsProtocol(self._config, self._uvicorn.server_state, {}), connection
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            await self._uvicorn.on_tick(0)
