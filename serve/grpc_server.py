"""gRPC's server: what it listens on, its services behind their gate, and another in its place where it has ended."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from fuseline.serve.access.gate import Gate
from fuseline.serve.errors import InputError
from fuseline.serve.grpc_options import server_options
from fuseline.serve.listening.listeners import Listeners
from fuseline.serve.services.grpc_gate import GuardedHandlers
from fuseline.serve.services.grpc_messages import CheckedHandlers
from fuseline.serve.settings import Settings
from fuseline.serve.tls.certificates import Certificates
from fuseline.serve.tls.grpc_credentials import server_credentials

_LOOK_S = 0.25
"""Seconds between two looks at whether gRPC still takes calls."""

_CLOSING_S = 0.1
"""Seconds for which gRPC's threads close what the server before has listened on. They remove the files of its Unix
sockets, which must not be those of the next one."""

_BIND_AGAIN_S = 0.5

_log = logging.getLogger(__name__)


class GrpcServer:
    """Takes calls at its addresses from `start` until `stop`. Everything happens on one event loop."""

    def __init__(
        self,
        settings: Settings,
        add_services: Callable[[Any], None],
        *,
        gate: Gate | None,
        shares_port: bool,
        certificates: Certificates | None,
    ) -> None:
        """Serve what `add_services` adds to a server, as generated code does; it is called for each.

        `gate` lets calls in by their tokens; None: any call. With `shares_port`, other processes of this server listen
        on the TCP ports too; with `certificates` these speak TLS.
        """
        self._settings = settings
        self._add_services = add_services
        self._gate = gate
        self._shares_port = shares_port
        self._certificates = certificates
        self._server, self._listeners = self._made()
        self._addresses: tuple[str, ...] = ()
        self._keeping: asyncio.Task[None] | None = None
        # Servers in whose place another is, and the end of each, once their calls have ended.
        self._replaced: dict[grpc.aio.Server, asyncio.Task[None]] = {}

    def bind(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """See `Listeners.bind`."""
        self._addresses = self._listeners.bind(addresses)
        return self._addresses

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self, grace_s: float) -> None:
        """Take no further call, and return once those under way have ended, which have so many seconds."""
        await asyncio.gather(*(server.stop(grace_s) for server in (self._server, *self._replaced)))

    async def close(self) -> None:
        """End at once what is left."""
        for task in (self._keeping, *self._replaced.values()):
            if task is not None:
                task.cancel()
        await self._server.stop(None)
        self._listeners.forget()

    def abandon(self) -> None:
        """Leave no file behind, called by any thread, where the process ends before `close` has come to its end."""
        self._listeners.abandon()

    async def _keep(self) -> None:
        """Put another server in the place of one that ended by an error; return once one ended by `stop`.

        grpc.aio takes no call more after the first one whose path is not UTF-8, which anyone can send, before any gate.
        Calls under way are answered still; clients connect again.
        """
        while True:
            try:
                # Calls that are still open keep it from its end, but not from telling of an error after each timeout.
                while await self._server.wait_for_termination(_LOOK_S):
                    pass
                return
            except Exception as error:  # noqa: BLE001 it is raised again only where nothing else awaits it
                _log.error("gRPC's server takes no call any more (%s); another takes its place", type(error).__name__)
            await self._replace()

    async def _replace(self) -> None:
        self._replaced[self._server] = asyncio.create_task(self._end(self._server))
        await asyncio.sleep(_CLOSING_S)
        while True:
            self._server, self._listeners = self._made()
            try:
                self._listeners.bind(self._addresses)
                break
            except InputError as error:
                _log.error("%s; it is tried again", error)
                # Only a server that was started lets go of what it has bound.
                await self._server.start()
                await self._server.stop(None)
                await asyncio.sleep(_BIND_AGAIN_S)
        await self._server.start()

    async def _end(self, server: grpc.aio.Server) -> None:
        await server.stop(self._settings.drain_timeout_s)
        del self._replaced[server]

    def _made(self) -> tuple[grpc.aio.Server, Listeners]:
        server = grpc.aio.server(options=server_options(self._settings, shares_port=self._shares_port))
        if self._gate is None:
            self._add_services(CheckedHandlers(server))
        else:
            guarded = GuardedHandlers(self._gate, last_answers_s=self._settings.drain_timeout_s)
            self._add_services(CheckedHandlers(guarded))
            server.add_generic_rpc_handlers((guarded,))
        certificates = self._certificates
        credentials = None if certificates is None else lambda: server_credentials(certificates)
        return server, Listeners(server, shares_ports=self._shares_port, credentials=credentials)
