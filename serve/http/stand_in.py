"""Health over HTTP while the event loop is busy or hangs.

A backend that is called on the event loop may block it, for long or for ever. A probe's connection then waits in the
listening socket. A thread, which sleeps until someone connects, looks a moment later whether the connection still
waits, and asks the event loop for a sign of life. When none comes it accepts itself, from the same socket, until one
does. It wakes at most a few times a second.

The thread answers probes alone. Any other connection, of which it has only looked at the first bytes, it hands to the
event loop, where it is served once the loop turns again: nothing is refused because the loop was busy for a moment.
Over TLS it makes the handshake for that, and hands over the session too.
"""

import asyncio
import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp

from fuseline.serve.access.gate import Gate
from fuseline.serve.http.app import PROBES
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.http.newcomer import Newcomer

_LOOK_S = 0.25
_PATIENCE_S = 0.25
"""Time in seconds in which a loop that turns gives its sign of life. A probe waits at most for both, and a step."""
_STEP_S = 0.02
_WARN_AFTER_S = 2.0
_FLUSH_S = 0.5
_MOST_HANDED_OVER = 128
"""Connections that may wait for the event loop to turn; further ones are answered as the application does it that has
no services: 503."""

_log = logging.getLogger(__name__)


class StandIn:
    """Answers probes in the place of a server whose event loop doesn't turn."""

    def __init__(
        self,
        server: HttpServer,
        listener: socket.socket,
        app: ASGIApp,
        limits: HttpLimits,
        tls: Callable[[], ssl.SSLContext] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Stand in for `server`, which accepts from `listener` on the running loop; `app` has no inference services.

        `tls` and `gate` are those of `server`.
        """
        self._server = server
        self._listener = listener.dup()
        self._app = app
        self._limits = limits
        self._gate = gate
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._handed_over: deque[Newcomer] = deque()
        self._thread = threading.Thread(target=self._watch, name="fuseline-http-stand-in", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    async def close(self) -> None:
        """End the watch; the listening socket is free when this returns."""
        self._closed.set()
        self._wake.close()
        await asyncio.to_thread(self._thread.join)
        self._take_over()

    def _watch(self) -> None:
        with self._listener, self._woken:
            waiting, waiting_or_closed = select.poll(), select.poll()
            waiting.register(self._listener, select.POLLIN)
            waiting_or_closed.register(self._listener, select.POLLIN)
            waiting_or_closed.register(self._woken, select.POLLIN)
            while waiting_or_closed.poll() and not self._closed.wait(_LOOK_S):
                if not waiting.poll(0):
                    continue
                turned = threading.Event()
                # The loop may have ended.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(turned.set)
                if not turned.wait(_PATIENCE_S) and not self._closed.is_set():
                    asyncio.run(self._answer(turned))

    async def _answer(self, turned: threading.Event) -> None:
        since, warned = time.monotonic() - _PATIENCE_S, False
        server = HttpServer(self._app, self._listener.dup(), self._limits, gate=self._gate, tls=self._tls)
        await server.start(accepts=False)
        connections: dict[Newcomer, float] = {}
        try:
            while not (turned.is_set() or self._closed.is_set()):
                with suppress(OSError):  # no more of them, or no room for more
                    while True:
                        newcomer = Newcomer(self._listener.accept()[0], None if self._tls is None else self._tls())
                        connections[newcomer] = time.monotonic()
                for connection, accepted in list(connections.items()):
                    if self._sorted(connection, server, is_late=time.monotonic() - accepted > self._limits.head_s):
                        del connections[connection]
                if not warned and time.monotonic() - since > _WARN_AFTER_S:
                    warned = True
                    _log.warning("the event loop has been busy for %g s; a thread answers probes", _WARN_AFTER_S)
                await asyncio.sleep(_STEP_S)
            for connection in connections:
                self._hand_over(connection)
            await server.drain(_FLUSH_S)
        finally:
            await server.close()
        if warned:
            _log.warning("the event loop turns again, after %.1f s", time.monotonic() - since)

    def _sorted(self, connection: Newcomer, server: HttpServer, *, is_late: bool) -> bool:
        """Give `connection` to whom it is for; return False if it has not told yet."""
        try:
            first = connection.first_bytes()
        except OSError:
            connection.close()
            return True
        if first is None:
            if is_late:
                connection.close()
            return is_late
        if _is_probe(first) or len(self._handed_over) >= _MOST_HANDED_OVER:
            connection.serve_by(server)
        else:
            self._hand_over(connection)
        return True

    def _hand_over(self, connection: Newcomer) -> None:
        self._handed_over.append(connection)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_over)

    def _take_over(self) -> None:
        while self._handed_over:
            connection = self._handed_over.popleft()
            if self._closed.is_set():
                connection.close()
            else:
                connection.serve_by(self._server)


def _is_probe(first: bytes) -> bool:
    """Return whether a request that begins with `first` is for one of the paths of health and metrics."""
    method, _, rest = first.partition(b" ")
    target, end, _ = rest.partition(b" ")
    return method in {b"GET", b"HEAD"} and bool(end) and target.partition(b"?")[0] in PROBES
