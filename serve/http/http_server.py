"""HTTP over one listening socket, on the running event loop, beside gRPC.

uvicorn's server watches a flag ten times a second, captures signals and closes connections without a bound, so what
serves here is its protocol, with its state and header fields, below an acceptor of our own. Without connections nothing
runs; with any, one look a second at all of them takes the place of timers.

A handler whose client goes away is cancelled, as that of a cancelled gRPC call is: `asyncio.CancelledError` is raised
where it awaits, so that a request that waits in a queue leaves it. A handler need not look for that, and must not catch
it. A client that closes only its sending side counts as gone.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from fuseline.serve.access.gate import Gate
from fuseline.serve.http.connection import HttpConnection
from fuseline.serve.http.connection_group import ConnectionGroup
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.tls_connection import TlsConnection
from fuseline.serve.tls.session import TlsSession

_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_FLUSH_POLL_S = 0.02
_STEP_BACK_S = 0.001
_CANCEL_S = 1.0

_FIRST_REQUEST_S = 0.1
"""Longest time in seconds that who has just connected gets to ask and to be answered, as the server ends."""

_log = logging.getLogger(__name__)


class HttpServer:
    """Answers what comes to a listening socket by an ASGI application. Call every method on one event loop."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        limits: HttpLimits,
        *,
        gate: Gate | None = None,
        shares: bool = False,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Serve `app` on `listener`, which belongs to this server from now on.

        With a `gate`, requests without a token that it knows are refused by their head, but for paths that are open.
        `tls` returns the context of a connection that begins now; None: HTTP is plain.

        With `shares`, other processes accept from the same socket, and each leaves the next connection to the others
        for a moment: a process that is just awake would take all of a burst, and clients keep connections for long.
        """
        config = uvicorn.Config(
            app,
            http=HttpConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        self._uvicorn = uvicorn.Server(config)
        self._group = ConnectionGroup(config, self._uvicorn.server_state, limits, gate)
        self._listener = listener
        self._shares = shares
        self._tls = tls
        self._accepts = False
        self._sweeping: asyncio.Task[None] | None = None
        self._used = asyncio.Event()
        """Set when connections begin to be open: without any, nothing is swept."""
        self._adopting: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> list[HttpConnection]:
        """Return the open connections."""
        return list(self._group.state.connections)  # type: ignore[arg-type]

    async def start(self, *, accepts: bool = True) -> None:
        """Serve from now on, and, unless `accepts` is false, accept connections."""
        self._listener.setblocking(False)
        self._sweeping = asyncio.create_task(self._sweep())
        self.accept(accepts=accepts)

    def accept(self, *, accepts: bool) -> None:
        """Take new connections, or leave them to others that accept from the same socket."""
        if accepts == self._accepts:
            return
        self._accepts = accepts
        if accepts:
            self._listen()
        else:
            asyncio.get_running_loop().remove_reader(self._listener)

    def begin_drain(self) -> None:
        """Close each connection after its present answer. New ones are still accepted, and answered once."""
        self._group.draining = True
        for connection in self.connections:
            connection.close_after_answer()

    async def drain(self, flush_s: float) -> None:
        """Deliver the answers to requests that are whole, refuse others, and return then or after `flush_s`."""
        self.begin_drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(flush_s):
                while tasks := list(self._group.state.tasks):
                    await asyncio.wait(tasks)
                await self._first_requests()
                for connection in self.connections:
                    connection.end()
                while any(connection.has_unsent for connection in self.connections):  # noqa: ASYNC110 tells no one
                    await asyncio.sleep(_FLUSH_POLL_S)

    async def close(self) -> None:
        """Accept nothing more, and close every connection; those that have just been made are answered before."""
        if self._sweeping is None:
            self._listener.close()
            return
        self.accept(accepts=False)
        await self._first_requests()
        self._listener.close()
        self._sweeping.cancel()
        for task in self._adopting:
            task.cancel()
        for connection in self.connections:
            connection.transport.abort()
        if tasks := list(self._group.state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_S)

    async def _first_requests(self) -> None:
        """Let who has just connected ask, and be answered: else they see a reset, as of a server that died."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_REQUEST_S):
                while any(connection.is_new for connection in self.connections) or self._adopting:  # noqa: ASYNC110
                    await asyncio.sleep(_FLUSH_POLL_S)
                while tasks := list(self._group.state.tasks):
                    await asyncio.wait(tasks)

    def adopt(self, connection: socket.socket, session: TlsSession | None = None, received: bytes = b"") -> None:
        """Serve a connection that was accepted elsewhere, and belongs to this server from now on.

        Over TLS a `session` may have begun there, and has given `received`, plain bytes that nobody has answered.
        """
        connection.setblocking(False)
        task = asyncio.create_task(self._adopt(connection, session, received))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has gone
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            _log.error("HTTP can't take a connection (%s); it tries again in a moment", error.strerror)
            self._step_back(self._group.limits.sweep_s)
            return
        self.adopt(connection)
        if self._shares:
            self._step_back(_STEP_BACK_S)

    def _step_back(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._listen)

    def _listen(self) -> None:
        if self._accepts:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def _adopt(self, connection: socket.socket, session: TlsSession | None, received: bytes) -> None:
        def protocol() -> asyncio.Protocol:
            http = HttpConnection(self._group)
            if self._tls is None:
                return http
            return TlsConnection(http, session or TlsSession(self._tls()), received)

        if not self._group.state.connections:
            await self._tick()
            self._used.set()
        # The client may be gone already.
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)

    async def _sweep(self) -> None:
        while True:
            await self._used.wait()
            self._used.clear()
            while self._adopting or self._group.state.connections:
                await asyncio.sleep(self._group.limits.sweep_s)
                await self._tick()
                for connection in self.connections:
                    connection.sweep()

    async def _tick(self) -> None:
        self._group.now = asyncio.get_running_loop().time()
        await self._uvicorn.on_tick(0)  # brings the header field Date up to date
