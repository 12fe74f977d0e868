"""A worker's connection to the backend process, made anew whenever it is lost."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn, cast

from fuseline.serve.batching.admission import Admission
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.model import Model
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.settings import Settings
from fuseline.serve.workers.arena import Arena, create_memory
from fuseline.serve.workers.handshake import Welcome, answer_welcome, receive_welcome
from fuseline.serve.workers.record_buffer import RecordBuffer
from fuseline.serve.workers.remote_batcher import RemoteBatcher
from fuseline.serve.workers.wire_format import ANSWER, ERROR, ToWorker, reader_of_backend_records

_RETRY_S = 0.05

_log = logging.getLogger(__name__)


class BackendChangedError(Exception):
    """The backend process came back with other models; a worker can't change its own."""


class BackendLink:
    """Holds this worker's memory and its models, whose batchers run in the backend process."""

    def __init__(self, address: Path, settings: Settings) -> None:
        self.models: list[Model] = []
        """What is served; known once `open` has returned."""
        self._address = address
        self._settings = settings
        self._welcome: Welcome | None = None
        self._batchers: list[RemoteBatcher] = []
        self._files: list[int] = []
        self._lost = asyncio.Event()

    async def open(self) -> None:
        """Wait for the backend, connect, and admit requests from then on.

        Raises:
            BackendChangedError: it serves something else than it did before.
        """
        loop = asyncio.get_running_loop()
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, str(self._address))
                welcome = await receive_welcome(connection)
                self._take(welcome)
                answer_welcome(connection, self._files)
                break
            except OSError:
                connection.close()
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                connection.close()
                raise
        self._lost.clear()
        await loop.create_unix_connection(lambda: BackendConnection(self._batchers, self._lost), sock=connection)

    async def keep(self, on_change: Callable[[bool], Awaitable[None]]) -> NoReturn:
        """After `open`: reconnect whenever the backend is lost; tell `on_change` whether it is there.

        Raises:
            BackendChangedError: it came back with something else.
        """
        while True:
            await self._lost.wait()
            _log.warning("the backend process has ended; what it had is answered with UNAVAILABLE")
            await on_change(False)
            await self.open()
            await on_change(True)

    def _take(self, welcome: Welcome) -> None:
        if self._welcome is None:
            self._welcome = welcome
            for position, served in enumerate(welcome.models):
                shape = served.arena_shape(self._settings.max_queue_rows)
                self._files.append(file := create_memory(shape))
                buckets = served.backend.buckets
                admission = Admission(
                    BatchProfile(buckets, {}, 0.0),
                    buckets,
                    unsaturated_rows=served.unsaturated_rows,
                    max_queue_rows=self._settings.max_queue_rows,
                    max_queue_seconds=self._settings.max_queue_ms / 1000,
                )
                self._batchers.append(batcher := RemoteBatcher(position, Arena(file, shape), admission))
                self.models.append(
                    Model(
                        ModelPackage(folder=served.folder, manifest=served.manifest),
                        served.backend,
                        served.backend_reason,
                        batcher,
                    )
                )
        elif welcome != self._welcome:
            raise BackendChangedError("the backend process came back with other models, or another runtime")

    def close(self) -> None:
        """Close the descriptors of the memory; the connection goes with the process."""
        for file in self._files:
            os.close(file)
        self._files = []


class BackendConnection(asyncio.Protocol):
    """Hands the backend's records to the batchers that they are for."""

    def __init__(self, batchers: list[RemoteBatcher], lost: asyncio.Event) -> None:
        self._batchers = batchers
        self._lost = lost
        self._reader = reader_of_backend_records()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no asyncio.Transport by class.
        write = RecordBuffer(cast("asyncio.WriteTransport", transport).write).write
        for batcher in self._batchers:
            batcher.connect(write)

    def data_received(self, data: bytes) -> None:
        answers: list[list[ToWorker]] = [[] for _ in self._batchers]
        for fields, tail in self._reader.feed(data):
            kind, model, number = fields[:3]
            if kind == ANSWER:
                answers[model].append(ToWorker(*fields))
            elif kind == ERROR:
                self._batchers[model].failed(number, tail)
            else:
                self._batchers[model].released(number)
        for batcher, heads in zip(self._batchers, answers, strict=True):
            if heads:
                batcher.answered(heads)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        for batcher in self._batchers:
            batcher.disconnect()
        self._lost.set()
