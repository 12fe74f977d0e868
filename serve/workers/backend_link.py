"""A worker's connection to the backend process, made anew whenever it is lost."""

import asyncio
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

from fuseline.serve.batching.admission import Admission
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.model import Model
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.workers.arena import Arena, create_memory
from fuseline.serve.workers.handshake import Announcement, ServedModel, receive_announcement, send_memory
from fuseline.serve.workers.record_buffer import RecordBuffer
from fuseline.serve.workers.remote_batcher import RemoteBatcher
from fuseline.serve.workers.wire_format import ANSWER, ERROR, ToWorker, reader_of_backend_records

_RETRY_S = 0.05

_log = logging.getLogger(__name__)


class BackendChangedError(Exception):
    """The backend process came back with other models, and a worker can't change its own."""


class _LinkedModel(NamedTuple):
    """A model of the backend process, and this worker's end of it."""

    served: ServedModel
    model: Model
    batcher: RemoteBatcher
    file: int
    """Descriptor of the memory that both processes share."""


class BackendLink:
    """Holds this worker's memory and its models, whose batchers run in the backend process."""

    def __init__(self, address: Path) -> None:
        self._address = address
        # Models by their number in the backend process that was last connected.
        self._linked: dict[int, _LinkedModel] = {}
        self._lost = asyncio.Event()

    @property
    def models(self) -> list[Model]:
        """Served models; known once `open` has returned."""
        return [linked.model for linked in self._linked.values()]

    async def open(self) -> None:
        """Wait for the backend, connect, and admit requests from then on.

        Raises:
            BackendChangedError: the backend serves other models than it did before.
        """
        loop = asyncio.get_running_loop()
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, str(self._address))
                self._take(await receive_announcement(connection))
                send_memory(connection, {number: linked.file for number, linked in self._linked.items()})
                break
            except OSError:
                connection.close()
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                connection.close()
                raise
        self._lost.clear()
        batchers = {number: linked.batcher for number, linked in self._linked.items()}
        await loop.create_unix_connection(lambda: BackendConnection(batchers, self._lost), sock=connection)

    async def keep_connected(self, on_change: Callable[[bool], Awaitable[None]]) -> NoReturn:
        """Reconnect, after `open`, whenever the backend is lost.

        `on_change` is called with False when it is lost, and with True when it is back.

        Raises:
            BackendChangedError: the backend came back with other models.
        """
        while True:
            await self._lost.wait()
            _log.warning("the backend process has ended; what it had is answered with UNAVAILABLE")
            await on_change(False)
            await self.open()
            await on_change(True)

    def _take(self, announcement: Announcement) -> None:
        """Make this worker's end of every model, or find it by name if the model was announced before."""
        announced = announcement.models
        if not self._linked:
            self._linked = {number: self._linked_to(served) for number, served in announced.items()}
            return
        known = {linked.served.name: linked for linked in self._linked.values()}
        if {served.name: served for served in announced.values()} != {
            name: link.served for name, link in known.items()
        }:
            raise BackendChangedError("the backend process came back with other models, or another runtime")
        self._linked = {number: known[served.name] for number, served in announced.items()}

    def _linked_to(self, served: ServedModel) -> _LinkedModel:
        policy, shape = served.policy, served.arena_shape
        file = create_memory(shape)
        admission = Admission(
            BatchProfile(policy.buckets, {}, 0.0),
            policy,
            BatchProfile(policy.alone_buckets, {}, 0.0) if policy.alone_buckets else None,
        )
        batcher = RemoteBatcher(Arena(file, shape), admission)
        package = ModelPackage(folder=served.folder, manifest=served.manifest)
        return _LinkedModel(
            served, Model(package, served.backend, served.backend_reason, batcher, served.lanes), batcher, file
        )

    def close(self) -> None:
        """Close the descriptors of the memory; the connection ends with the process."""
        for linked in self._linked.values():
            os.close(linked.file)
        self._linked = {}


class BackendConnection(asyncio.Protocol):
    """Passes the backend's records on to the batchers that they are for."""

    def __init__(self, batchers: Mapping[int, RemoteBatcher], lost: asyncio.Event) -> None:
        """`batchers` by model number; `lost` is set once the connection has ended."""
        self._batchers = batchers
        self._lost = lost
        self._reader = reader_of_backend_records()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio.Transport.
        write = RecordBuffer(cast("asyncio.WriteTransport", transport).write).write
        for model, batcher in self._batchers.items():
            batcher.connect(model, write)

    def data_received(self, data: bytes) -> None:
        answers: defaultdict[int, list[ToWorker]] = defaultdict(list)
        for fields, tail in self._reader.feed(data):
            kind, model, number = fields[:3]
            if kind == ANSWER:
                answers[model].append(ToWorker(*fields))
            elif kind == ERROR:
                self._batchers[model].failed(number, tail)
            else:
                self._batchers[model].released(number)
        for model, heads in answers.items():
            self._batchers[model].answered(heads)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        for batcher in self._batchers.values():
            batcher.disconnect()
        self._lost.set()
