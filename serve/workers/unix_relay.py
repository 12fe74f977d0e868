"""Carries what comes on Unix sockets to the workers and back.

Workers share a TCP port by SO_REUSEPORT, which Unix sockets lack, and gRPC takes no socket that another process has
bound. So the supervisor listens, each worker has a socket of its own, and bytes are carried between the two.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

from fuseline.serve.listening.unix_sockets import listening_unix_socket, socket_file

_BACKLOG = 1024
_FLUSH_S = 2.0
"""Longest time in seconds for the delivery of the last answers."""


class UnixRelay:
    """Listens on Unix sockets, and gives each connection to the worker that has the fewest of them.

    A connection ends when either end closes it; no more of it is held than one transport's buffer in each direction.
    """

    def __init__(self, workers: Callable[[], Collection[Path]]) -> None:
        """`workers` tells the sockets of the workers that are ready."""
        self._workers = workers
        self._listening: dict[str, socket.socket] = {}
        self._servers: list[asyncio.Server] = []
        self._open: set[_Caller] = set()
        self._given: Counter[Path] = Counter()

    def listen(self, address: str) -> str:
        """Listen on a Unix `address`, and return it; connections wait until `start`.

        Raises:
            InputError: as `fuseline.serve.listening.unix_sockets.listening_unix_socket` does.
        """
        self._listening[address] = listening_unix_socket(address, _BACKLOG)
        return address

    async def start(self) -> None:
        """Carry connections from now on."""
        loop = asyncio.get_running_loop()
        for listener in self._listening.values():
            self._servers.append(await loop.create_unix_server(self._caller, sock=listener, backlog=_BACKLOG))

    async def finish(self) -> None:
        """Return, after the workers have ended, once every caller has what they sent, or some seconds later."""
        if self._open:
            await asyncio.wait({caller.ended for caller in self._open}, timeout=_FLUSH_S)

    def close(self) -> None:
        """Listen no more, and remove the sockets' files. Calling it again does nothing."""
        for server in self._servers:
            server.close()
        for address, listener in self._listening.items():
            listener.close()
            if (path := socket_file(address)) is not None:
                path.unlink(missing_ok=True)
        self._listening.clear()

    def _caller(self) -> "_Caller":
        return _Caller(self)

    async def connect(self, caller: "_Caller") -> None:
        """Connect `caller` to a worker; it is closed if there is none."""
        self._open.add(caller)
        path = min(self._workers(), key=lambda path: self._given[path], default=None)
        if path is None:
            caller.close()
            return
        self._given[path] += 1
        caller.ended.add_done_callback(lambda _: self._given.subtract({path: 1}))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _End(caller), str(path))
        except OSError:
            # The worker has just ended.
            caller.close()

    def forget(self, caller: "_Caller") -> None:
        """Note that `caller` has gone."""
        self._open.discard(caller)


class _End(asyncio.Protocol):
    """One end of a carried connection: what it receives is written to `other`, as fast as that takes it.

    An end that sends no more is closed, which closes `other` too: gRPC's server does the same with its clients.
    """

    def __init__(self, other: "_End | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        assert self.other is not None
        self.other.other = self
        if self.other.transport is None or self.other.transport.is_closing():
            self.close()
        else:
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        assert self.other.transport is not None
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        """Close this end once what was written to it has been delivered."""
        if self.transport is not None:
            self.transport.close()


class _Caller(_End):
    """The end of a client, which nothing is read from until a worker is connected."""

    def __init__(self, relay: UnixRelay) -> None:
        super().__init__()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._relay = relay
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self._connecting = asyncio.create_task(self._relay.connect(self))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set_result(None)
        self._relay.forget(self)
