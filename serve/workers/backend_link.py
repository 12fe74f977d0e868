"""A worker's connection to the backend process, made anew whenever it is lost; models come and go by it."""

import asyncio
import logging
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, cast

from fuseline.serve.batching.admission import Admission
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.model import Model
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.repository import Repository
from fuseline.serve.workers.backend_door import connect_through
from fuseline.serve.workers.catalogue import Catalogue, ServedModel
from fuseline.serve.workers.record_buffer import RecordBuffer
from fuseline.serve.workers.remote_batcher import RemoteBatcher
from fuseline.serve.workers.wire_format import (
    ANSWER,
    BATCHES,
    CATALOGUE,
    ERROR,
    RELEASED,
    ToWorker,
    memory_record,
    reader_of_backend_records,
    taken_record,
)
from fuseline.serve.workers.worker_memory import WorkerMemory

_RETRY_S = 0.05

_log = logging.getLogger(__name__)


class _LinkedModel(NamedTuple):
    """A model of the backend process, and this worker's end of it."""

    model: Model
    policy: BatchPolicy
    batcher: RemoteBatcher
    offset: int
    """Offset of its rows in the memory that both processes share."""


class BackendLink:
    """Keeps a repository as the backend process has it, with batchers that run there.

    A change of what is served takes effect between two turns of the event loop. Requests that have found a model by
    then are answered by it.
    """

    def __init__(self, door: socket.socket, repository: Repository) -> None:
        """Begin without a connection. `door` is the outer end of that of the backend, which stays the caller's."""
        self._door = door
        self._repository = repository
        self._memory = WorkerMemory()
        # By their number in the backend process that is connected, or was last.
        self._linked: dict[int, _LinkedModel] = {}
        self._retiring: set[int] = set()
        # Those of a backend that has gone, until the next one says what it serves.
        self._lost: list[_LinkedModel] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: BackendConnection | None = None

    async def open(self) -> None:
        """Wait for the backend, connect, and return once the repository has the models that are served."""
        loop = asyncio.get_running_loop()
        while True:
            # It fails where too many wait at the door, or no descriptor is left.
            with suppress(OSError):
                connection = connect_through(self._door, self._memory.file)
                _, self._connection = await loop.create_unix_connection(
                    lambda: BackendConnection(self), sock=connection
                )
                if await self._connection.taken_or_lost():
                    return
            await asyncio.sleep(_RETRY_S)

    async def keep_connected(self, on_change: Callable[[bool], Awaitable[None]]) -> NoReturn:
        """Reconnect, after `open`, whenever the backend is lost.

        `on_change` is called with False when it is lost, and with True when it is back.
        """
        while True:
            assert self._connection is not None
            await self._connection.lost.wait()
            _log.warning("the backend process has ended; what it had is answered with UNAVAILABLE")
            await on_change(False)
            await self.open()
            await on_change(True)

    def take(self, catalogue: Catalogue, generation: int, write: Callable[[bytes], None]) -> None:
        """Serve what `catalogue` says from now on. `write` takes records to the backend that sent it."""
        for number, served in catalogue.added.items():
            self._linked[number] = linked = self._linked_to(served)
            linked.batcher.connect(number, write)
            write(memory_record(number, linked.offset))
        self._repository.serve([self._linked[number].model for number in catalogue.served])
        lost, self._lost = self._lost, []
        for linked in lost:
            self._release(linked)
        for number in self._linked.keys() - set(catalogue.served) - self._retiring:
            self._retiring.add(number)
            self._start(self._linked[number].batcher.retire())
        write(taken_record(generation))

    def batcher(self, number: int) -> RemoteBatcher:
        """Return the batcher of a model by the number that the connected backend gave it."""
        return self._linked[number].batcher

    def forget(self, number: int) -> None:
        """Release what a model needed; the backend does not know it any more."""
        self._retiring.discard(number)
        self._release(self._linked.pop(number))

    def lose(self) -> None:
        """Fail what is under way: the backend has gone.

        The models stay in the repository until the next backend says what it serves. It may be the same.
        """
        for number in self._retiring:
            self._release(self._linked.pop(number))
        self._retiring.clear()
        self._lost += self._linked.values()
        self._linked = {}
        for linked in self._lost:
            linked.batcher.disconnect()

    def close(self) -> None:
        """Close the descriptor of the memory; the connection ends with the process."""
        self._memory.close()

    def _linked_to(self, served: ServedModel) -> _LinkedModel:
        """Make this worker's end of a model; one that was served by a backend that has gone keeps its memory."""
        package = ModelPackage(folder=served.folder, manifest=served.manifest)
        known = next((its for its in self._lost if _is_same(its, served)), None)
        if known is None:
            offset, arena = self._memory.take(served.arena_shape)
            batcher = RemoteBatcher(arena, _admission_of(served.policy))
        else:
            self._lost.remove(known)
            offset, batcher = known.offset, known.batcher
        model = Model(package, served.backend, served.backend_reason, batcher, served.lanes)
        model.version_policy = served.version_policy
        return _LinkedModel(model, served.policy, batcher, offset)

    def _release(self, linked: _LinkedModel) -> None:
        linked.batcher.disconnect()
        self._start(self._memory.give_back(linked.offset))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class BackendConnection(asyncio.Protocol):
    """Passes the backend's records on to the batchers that they are for."""

    def __init__(self, link: BackendLink) -> None:
        self._link = link
        self._reader = reader_of_backend_records()
        self._first: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        """Set once the connection has ended."""

    async def taken_or_lost(self) -> bool:
        """Return True once the backend has said what it serves, False if it has gone before."""
        return await self._first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio.Transport.
        self._write = RecordBuffer(cast("asyncio.WriteTransport", transport).write).write

    def data_received(self, data: bytes) -> None:
        answers: defaultdict[int, list[ToWorker]] = defaultdict(list)
        for fields, tail in self._reader.feed(data):
            kind, model, number = fields[:3]
            if kind == ANSWER:
                answers[model].append(ToWorker(*fields))
            elif kind == ERROR:
                self._link.batcher(model).failed(number, tail)
            elif kind == RELEASED:
                self._link.batcher(model).released(number)
            elif kind == BATCHES:
                self._link.batcher(model).batched(number, tail)
            else:
                # What a model was asked is answered before it goes.
                self._hand_out(answers)
                if kind == CATALOGUE:
                    self._take(number, tail)
                else:
                    self._link.forget(model)
        self._hand_out(answers)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._link.lose()
        self.lost.set()
        if not self._first.done():
            self._first.set_result(False)

    def _hand_out(self, answers: dict[int, list[ToWorker]]) -> None:
        for model, heads in answers.items():
            self._link.batcher(model).answered(heads)
        answers.clear()

    def _take(self, generation: int, text: bytes) -> None:
        self._link.take(Catalogue.model_validate_json(text), generation, self._write)
        if not self._first.done():
            self._first.set_result(True)


def _is_same(linked: _LinkedModel, served: ServedModel) -> bool:
    return linked.model.manifest == served.manifest and linked.policy == served.policy


def _admission_of(policy: BatchPolicy) -> Admission:
    alone = BatchProfile(policy.alone_buckets, {}, 0.0) if policy.alone_buckets else None
    return Admission(BatchProfile(policy.buckets, {}, 0.0), policy, alone)
