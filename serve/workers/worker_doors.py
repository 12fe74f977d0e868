"""The workers of a backend process, as doors through which requests for its models come."""

import asyncio
import itertools
import logging
import os
import socket
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

from fuseline.serve.batching.batcher import Batcher, BatchStats, Misses
from fuseline.serve.batching.latency_control import Decision
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.model import BatchCounts, Model
from fuseline.serve.repository import Repository
from fuseline.serve.tracing.tracing import Tracer
from fuseline.serve.workers.arena import Arena, ArenaShape
from fuseline.serve.workers.backend_door import next_through
from fuseline.serve.workers.catalogue import ServedModel, served_model
from fuseline.serve.workers.remote_requests import RemoteRequests

TAKEN_WITHIN_S = 10.0
"""Longest time that a change waits for a worker to take it over. One that is later hangs, and answers nothing before it
has seen the change."""

_log = logging.getLogger(__name__)


class WorkerDoors:
    """Tells the workers that are connected which models are served. See `fuseline.serve.model_control.doors.Doors`.

    A worker that ends is waited for no more, and one that connects is told what is served then. A worker that hangs
    holds a change up for a bounded time. If it goes on later, what it then sends for a model that has gone is answered
    with UNAVAILABLE.
    """

    def __init__(
        self,
        repository: Repository,
        retire_within_s: float,
        on_published: Callable[[], None] = lambda: None,
        *,
        tracer: Tracer | None = None,
        feed: FeedSource | None = None,
    ) -> None:
        """Begin with no worker, and nothing served.

        `repository` is this process's own, which has what is served. `retire_within_s` is the longest time that a model
        which went waits for the requests that workers have for it. `on_published` is called after each `publish`.
        `tracer` makes the spans of batches; None: there are none. `feed` tells of them; None: nobody watches.
        """
        self.repository = repository
        self._retire_within_s = retire_within_s
        self._on_published = on_published
        self.tracer = tracer
        """What makes the spans of batches; None: there are none."""
        self.feed = feed
        """What names the batches of requests that are followed; None: none is."""
        self._workers: set[WorkerConnection] = set()
        self._numbers = itertools.count()
        self._number_of_model: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()
        # Keys are model numbers. Beside what is served, what is being retired is open.
        self._served: dict[int, ServedModel] = {}
        self._open: dict[int, tuple[Batcher, ArenaShape]] = {}
        self._generation = 0
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def served(self) -> Mapping[int, ServedModel]:
        """What workers are told of the models, by number."""
        return self._served

    def load(self, load_model: Callable[[BatchCounts], Model], counts: BatchCounts) -> Model:
        """Return the model that `load_model` returns, called with what counts its batches. May be called by any thread.

        `counts` counts them too.
        """
        number = next(self._numbers)
        model = load_model(_ModelCounts(number, counts, self._batch_finished))
        self._number_of_model[model] = number
        return model

    async def publish(self, served: Sequence[Model]) -> None:
        """See `Doors.publish`."""
        await self.repository.publish(served)
        models = {}
        for model in served:
            number = self._number_of_model[model]
            assert isinstance(model.batcher, Batcher)
            models[number] = its = self._served.get(number) or served_model(model, model.batcher)
            self._open[number] = model.batcher, its.arena_shape
        self._served = models
        self._generation = generation = self._generation + 1
        for worker in self._workers:
            worker.requests.tell(generation, models)
        self._on_published()
        late = await self._wait_for(lambda worker: worker.requests.taken >= generation, TAKEN_WITHIN_S)
        for worker in late:
            _log.warning("%s has not followed a change of the models yet; it hangs", worker)

    async def retire(self, model: Model) -> None:
        """See `Doors.retire`."""
        number = self._number_of_model[model]
        late = await self._wait_for(lambda worker: not worker.requests.may_request(number), self._retire_within_s)
        for worker in late:
            _log.warning("%s still has requests for version %s of %s, which goes", worker, model.version, model.name)
        self._open.pop(number, None)

    async def accept(self, door: socket.socket) -> None:
        """Serve the workers that come through the inner end of a `backend_door`, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            connection, memory = await next_through(door)
            await loop.create_unix_connection(partial(WorkerConnection, self, memory), sock=connection)

    def connected(self, worker: "WorkerConnection") -> None:
        """Tell a worker that has just connected what is served."""
        self._workers.add(worker)
        worker.requests.tell(self._generation, self._served)

    def disconnected(self, worker: "WorkerConnection") -> None:
        """Wait no more for a worker that has ended."""
        self._workers.discard(worker)
        self.notice()

    def notice(self) -> None:
        """Look again at what the workers have said.

        Served models that no worker has more requests for are drained: the server stops, and waits for no fuller
        batches.
        """
        self._news.set()
        self._news = asyncio.Event()
        for number in self._served:
            if self._workers and not any(worker.requests.may_request(number) for worker in self._workers):
                task = asyncio.create_task(self._open[number][0].drain())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def open_model(self, memory: int, number: int, offset: int) -> tuple[Batcher, Arena] | None:
        """Return the batcher of a model, and the arena at `offset` in the memory of a worker; None: the model went."""
        if (opened := self._open.get(number)) is None:
            return None
        batcher, shape = opened
        return batcher, Arena(memory, shape, offset)

    def _batch_finished(self, number: int) -> None:
        for worker in self._workers:
            worker.requests.batch_finished(number)

    async def _wait_for(self, done: Callable[["WorkerConnection"], bool], timeout_s: float) -> "list[WorkerConnection]":
        """Return once `done` holds for each connected worker, or with those for which it doesn't after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not all(map(done, self._workers)):
                    await self._news.wait()
        except TimeoutError:
            return [worker for worker in self._workers if not done(worker)]
        return []


class _ModelCounts:
    """Counts the batches of one model, and lets the workers have back the slots that each batch read."""

    def __init__(self, number: int, counts: BatchCounts, on_finished: Callable[[int], None]) -> None:
        self._number = number
        self._counts = counts
        self._on_finished = on_finished

    def count_batch(self, model: str, stats: BatchStats, version: str = "") -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._counts.count_batch(model, stats, version)
        self._on_finished(self._number)

    def count_decision(self, model: str, decision: Decision, version: str = "") -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._counts.count_decision(model, decision, version)

    def count_misses(self, model: str, misses: Misses, version: str = "") -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._counts.count_misses(model, misses, version)


class WorkerConnection(asyncio.Protocol):
    """Carries the records of one worker."""

    def __init__(self, doors: WorkerDoors, memory: int) -> None:
        """`memory` is a descriptor of what the worker shares, this object's to close."""
        self._doors = doors
        self._memory = memory
        self._pid = 0

    def __str__(self) -> str:
        return f"the worker with process id {self._pid}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio.Transport.
        write = cast("asyncio.WriteTransport", transport).write
        self.transport = transport
        peer = transport.get_extra_info("socket")
        self._pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")
        self.requests = RemoteRequests(
            self._open_model, write, self._doors.notice, self._doors.tracer, self._doors.feed
        )
        self._doors.connected(self)

    def data_received(self, data: bytes) -> None:
        self.requests.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.requests.disconnect()
        self._doors.disconnected(self)
        os.close(self._memory)

    def _open_model(self, number: int, offset: int) -> tuple[Batcher, Arena] | None:
        return self._doors.open_model(self._memory, number, offset)
