"""One server process: bind, load and warm, serve, drain.

The addresses of gRPC are bound first, so that a taken one is known at once, but calls are taken only when every model
is warm: a client that calls earlier waits for its answer instead of failing. HTTP answers from the start: /healthz 200,
/readyz 503 until the models are warm.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fuseline.serve.feed.hub import FeedHub
from fuseline.serve.grpc_server import GrpcServer
from fuseline.serve.listening.addresses import first_port, listening_for_http
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.tls_metrics import show_certificates
from fuseline.serve.model_control.control import ModelControl
from fuseline.serve.model_source import ModelSource, PackageModels
from fuseline.serve.process.server_log import end_process
from fuseline.serve.process.stop_signals import run_until_signal
from fuseline.serve.server_core import ServerCore
from fuseline.serve.services.classify import SERVICE_NAME
from fuseline.serve.services.open_inference import SERVICE_NAME as OPEN_INFERENCE_SERVICE_NAME
from fuseline.serve.services.request_ids import made_id
from fuseline.serve.settings import Settings
from fuseline.serve.shared_memory.registrar import Registrar
from fuseline.serve.tls.certificates import Certificates
from fuseline.serve.tracing.tracing import open_tracer

if TYPE_CHECKING:
    from fuseline.serve.http.http_server import HttpServer
    from fuseline.serve.http.stand_in import StandIn

_FLUSH_S = 2.0
"""Longest time in seconds for the delivery of the last answers; a call that never ends, as a health watcher's, takes
all of it."""

_LOST_GRACE_S = 10.0
"""Seconds for which a server whose backend is lost tells so before it ends by itself: whoever runs it may act first,
and a call that hangs may yet return."""

_log = logging.getLogger(__name__)


class Server(ServerCore):
    """Serves the models of a source. Call `start`, then `drain`, each once, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        metrics: Metrics,
        *,
        shares_port: bool = False,
        registrar: Registrar | None = None,
        http_listener: socket.socket | None = None,
        certificates: Certificates | None = None,
        control: ModelControl | None = None,
        watch: Callable[[bool], None] | None = None,
        boot: str = "",
    ) -> None:
        """Serve the models of `source`, and count requests in `metrics`.

        `control` loads and unloads models by request; None: they stay as they are.
        `registrar` registers the memory that clients share; None: it is known to this process alone.
        With `shares_port`, other processes of this server listen on the port too; else the port is refused when any
        process does. They share `http_listener` too, from which this server accepts once it is ready.
        With `certificates`, which this server keeps up to date, TCP ports speak TLS.
        `watch` is called with True when somebody begins to watch this process's feed, with False when nobody does any
        more, and has chunks published in `hub` in between; None: they are this process's own.
        `boot` names this run of the server, in all its processes; empty: this process makes a name.
        """
        super().__init__(settings, source, metrics, registrar=registrar, control=control)
        self.addresses: tuple[str, ...] = ()
        """Addresses that gRPC listens on, known once `start` has returned."""
        self.http_port: int | None = None
        self.hub = FeedHub(self._watch_own if watch is None else watch)
        """Those who watch this process's feed."""
        self._boot = boot or made_id()
        self._shares_port = shares_port
        self._http_listener = http_listener
        self._http: HttpServer | None = None
        self._stand_in: StandIn | None = None
        self._certificates = certificates
        self._watching: asyncio.Task[None] | None = None
        self._grpc = GrpcServer(
            settings, self.add_services, gate=self._gate, shares_port=shares_port, certificates=certificates
        )

    @property
    def port(self) -> int:
        """The first TCP port of gRPC; 0: none."""
        return first_port(self.addresses)

    @classmethod
    def for_packages(cls, folders: Sequence[Path], settings: Settings) -> "Server":
        """Return a server that loads the packages in `folders` into this process.

        Raises:
            InputError: the files of TLS are broken.
        """
        metrics, files = Metrics(open_tracer()), settings.certificate_files
        certificates = None if files is None else Certificates(files)
        if certificates is not None:
            show_certificates(certificates, metrics.registry)
        source = PackageModels(folders, settings, metrics)
        return cls(settings, source, metrics, certificates=certificates, control=source.control)

    async def start(self) -> None:
        """Bind, load and warm every model, then accept; return when ready.

        Raises:
            InputError: an address is taken, or a folder is no sound package, or two have the same name; or an alias or
                a shadow doesn't fit the models.
            BackendUnavailableError: the asked-for backend can't run here.
        """
        settings = self._settings
        self.addresses = self._grpc.bind(settings.grpc_addresses)
        self.watch_liveness()
        try:
            if settings.http_port and not self._shares_port:
                await self._start_http(listening_for_http(settings.host, settings.http_port))
            await self.load()
        except BaseException:
            self.stop_watching()
            self.abandon()
            raise
        await self._grpc.start()
        self.ready = True
        if self._certificates is not None:
            self._watching = asyncio.create_task(self._certificates.watch())
        if self._http_listener is not None:
            await self._start_http(self._http_listener)

    def abandon(self) -> None:
        """Leave no file behind, called by any thread, where the process ends before `drain` has come to its end."""
        self._grpc.abandon()

    async def drain(self) -> None:
        """Admit nothing more, answer what was admitted, then stop.

        Health turns NOT_SERVING first. Requests whose images are still being decoded are admitted already.
        Raises `TimeoutError` when answers are still owed after `drain_timeout_s`; they are given up. Connections then
        get up to `_FLUSH_S` more to take their last answers.
        """
        self.ready = False
        self.hub.close("the server is shutting down")
        if self._http is not None:
            self._http.begin_drain()
        try:
            await self.finish()
            await asyncio.gather(self._grpc.stop(_FLUSH_S), self._flush_http())
        finally:
            self.stop_watching()
            await self._grpc.close()
            if self._watching is not None:
                self._watching.cancel()
            if self._stand_in is not None:
                await self._stand_in.close()
            if self._http is not None:
                await self._http.close()
            await self.close()

    def answers(self) -> str:
        """Return how many requests were answered since the start, by gRPC status, for people."""
        by_code = self._metrics.requests_by_code()
        return ", ".join(f"{count} {code}" for code, count in sorted(by_code.items())) or "none"

    def _watch_own(self, is_watched: bool) -> None:
        if is_watched:
            self._metrics.feed.start(self.hub.publish)
        else:
            self._metrics.feed.stop()

    async def _start_http(self, listener: socket.socket) -> None:
        # A server without HTTP starts the sooner by what starlette and uvicorn take to import.
        from fuseline.serve.console.console import Console
        from fuseline.serve.http.app import http_app
        from fuseline.serve.http.http_limits import http_limits
        from fuseline.serve.http.http_server import HttpServer
        from fuseline.serve.http.stand_in import StandIn

        settings, limits = self._settings, http_limits(self._settings)
        self.http_port = listener.getsockname()[1]
        console = None
        if settings.has_console:
            console = Console(
                settings,
                self.repository,
                lambda: self._service.aliases,
                lambda: self.addresses,
                self._metrics.feed,
                self.hub,
                self._boot,
            )
        services = self.http_services(console)
        stand_in_services = replace(services, classify=None, open_inference=None, console=None)
        its, stand_ins = http_app(services), http_app(stand_in_services)
        certificates = self._certificates
        tls = None if certificates is None else lambda: certificates.current.context
        self._http = HttpServer(its, listener, limits, gate=self._gate, shares=self._shares_port, tls=tls)
        await self._http.start()
        if not self._shares_port:
            self._stand_in = StandIn(self._http, listener, stand_ins, limits, tls, self._gate)
            self._stand_in.start()

    async def _flush_http(self) -> None:
        if self._http is not None:
            await self._http.drain(_FLUSH_S)

    def add_services(self, server: Any) -> None:
        """See `ServerCore.add_services`; reflection is added besides."""
        super().add_services(server)
        # Not by `enable_server_reflection`: it takes what guards a server for one with threads, and each stream would
        # hold one of the event loop's few for as long as it is open.
        names = (SERVICE_NAME, OPEN_INFERENCE_SERVICE_NAME, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME)
        reflecting = reflection.aio.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, server)  # type: ignore[no-untyped-call]


def run_server(folders: Sequence[Path], settings: Settings, announce: Callable[[Server], None]) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, drain, and return the exit code: 0, or 1 if answers had to be given up.

    `announce` is called when ready. A second signal ends the process at once, with 128 + its number.
    """
    servers: list[Server] = []

    async def serve(stop: asyncio.Event) -> int:
        servers.append(Server.for_packages(folders, settings))
        return await _run(servers[0], settings, announce, stop)

    def abandon() -> None:
        for server in servers:
            server.abandon()

    return run_until_signal(
        serve,
        drain_timeout_s=settings.drain_timeout_s,
        before_exit=abandon,
        hangs=lambda: any(server.liveness.loop_hangs for server in servers),
        grace_s=_LOST_GRACE_S,
    )


async def _run(server: Server, settings: Settings, announce: Callable[[Server], None], stop: asyncio.Event) -> int:
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # Nothing was admitted yet, and the thread that loads a model can't be interrupted.
        server.abandon()
        end_process(0)
    starting.result()
    announce(server)
    lost = asyncio.create_task(server.liveness.lost_for(_LOST_GRACE_S))
    await asyncio.wait((stopping, lost), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        _log.error("a backend hangs, and no lane is left that computes: this server ends, to be started again")
    try:
        await server.drain()
    except TimeoutError:
        _log.error("answers were still owed after %g s and are given up", settings.drain_timeout_s)
        # The backend may hang in its thread, for which a normal exit would wait.
        end_process(1)
    _log.info("drained; answers since the start: %s", server.answers())
    if server.is_loading or any(model.has_hung for model in server.repository):
        # The runtime may be called no more, not even to end; and a normal exit would wait for the thread that loads a
        # model, whose work nobody wants any more.
        end_process(int(lost.done()))
    lost.cancel()
    return 0
