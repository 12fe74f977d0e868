"""The supervisor's part in HTTP: it binds the port, and answers as long as no worker does.

All processes accept from one listening socket, which the workers inherit. With a socket of its own for each
(SO_REUSEPORT, as gRPC has it) the kernel gives every process its share of the connections, also one that has died or
hangs, and also the supervisor, which can't answer inference. With one socket whoever is there takes the next
connection, none is lost with a process, and the supervisor can step in and out.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Sequence

from fuseline.serve.access.gate import Gate
from fuseline.serve.http.app import http_app
from fuseline.serve.http.http_limits import http_limits
from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.http.http_services import HttpServices
from fuseline.serve.listening.addresses import listening_for_http
from fuseline.serve.settings import Settings
from fuseline.serve.workers.reports import report_text
from fuseline.serve.workers.supervised import SupervisedProcess
from fuseline.serve.workers.totals import Totals

_LOOK_S = 0.25
_FLUSH_S = 0.5


class HttpFront:
    """Answers probes while no worker is ready, and while none of them takes the connections that wait."""

    def __init__(
        self,
        settings: Settings,
        totals: Totals,
        is_ready: Callable[[], bool],
        taking: Callable[[], Sequence[SupervisedProcess]],
        is_live: Callable[[], bool] = lambda: True,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Bind the port. `taking` returns the workers that take connections now, `is_live` whether no process hangs.

        `tls` is that of `HttpServer`.

        Raises:
            InputError: the port can't be bound, or the file of token hashes can't be taken.
        """
        self._totals = totals
        self._taking = taking
        self._hangs = False
        self._listener = listening_for_http(settings.host, settings.http_port)
        self.port: int = self._listener.getsockname()[1]
        gate = None if settings.token_hashes is None else Gate(settings.token_hashes)
        app = http_app(HttpServices(None, None, self._metrics, is_ready, settings, gate, is_live))
        self._server = HttpServer(app, self._listener, http_limits(settings), gate=gate, tls=tls)
        self._watching: asyncio.Task[None] | None = None

    @property
    def listener_file(self) -> int:
        """Descriptor of the listening socket, for the workers."""
        return self._listener.fileno()

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())

    def adapt(self) -> None:
        """Accept connections or leave them to the workers. Called whenever `taking` has changed."""
        self._server.accept(accepts=self._hangs or not self._taking())

    async def close(self) -> None:
        """Free the port. It may be called again."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
            await self._server.drain(_FLUSH_S)
        await self._server.close()

    async def _watch(self) -> None:
        """See to it that probes are answered also while the event loops of all workers hang."""
        with self._listener.dup() as listener:
            waiting = select.poll()
            waiting.register(listener, select.POLLIN)
            while True:
                if not self._hangs:
                    await _readable(listener)
                await asyncio.sleep(_LOOK_S)
                if self._hangs or waiting.poll(0):
                    workers = self._taking()
                    self._hangs = bool(workers) and not await self._totals.any_answers(workers)
                    self.adapt()

    async def _metrics(self, *, open_metrics: bool = False) -> bytes:
        return report_text(await self._totals.read(), open_metrics=open_metrics)


async def _readable(file: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(file)
