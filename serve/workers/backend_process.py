"""`python -m fuseline.serve.workers.backend_process CONFIG`: the process that owns models, batchers and the device."""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from fuseline.serve.batching.batcher import Batcher, BatchStats, Misses
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from fuseline.serve.model import BatchCounts, Model, load_model
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings
from fuseline.serve.tracing.tracing import open_tracer
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.child_process import ProcessConfig, exit_at_once, follow_supervisor, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.handshake import Announcement, ServedModel, announce, served_model
from fuseline.serve.workers.remote_requests import RemoteRequests

LoadModel = Callable[[Path, Settings, BatchCounts], Model]

_log = logging.getLogger(__name__)


class BackendProcess:
    """Loads models, then serves the workers that connect, until it is told to drain."""

    def __init__(self, config: ProcessConfig, channel: ControlChannel, load: LoadModel) -> None:
        self._config = config
        self._channel = channel
        self._load = load
        self._metrics = Metrics(open_tracer(config.title))
        if config.settings.triton_metrics:
            self._metrics.registry.register(TritonMetrics(self._metrics))
        self._repository = Repository()
        self._model_numbers = itertools.count()
        # The keys of both are model numbers.
        self._served: dict[int, ServedModel] = {}
        self._batchers: dict[int, Batcher] = {}
        self.workers: set[_WorkerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the supervisor says to drain. Raises what `load_model` does."""
        settings = self._config.settings
        for folder in self._config.folders:
            await self._add_model(folder)
        assert self._config.listener_file is not None
        listener = socket.socket(fileno=self._config.listener_file)
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener))
        self._channel.send("ready", announcement=Announcement(models=self._served).model_dump(mode="json"))
        await follow_supervisor(
            self._channel, self._metrics.registry, self._metrics.statistics, on_message=lambda _: None
        )
        accepting.cancel()
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await self._repository.close()
        except TimeoutError:
            self._channel.send("drained", complete=False)
            await exit_at_once(self._channel)
        if self._metrics.tracer is not None:
            await asyncio.to_thread(self._metrics.tracer.close)
        send_report(self._channel, self._metrics.registry, self._metrics.statistics)
        self._channel.send("drained", complete=True)

    async def _add_model(self, folder: Path) -> None:
        number = next(self._model_numbers)
        counts = _ModelCounts(number, self._metrics, self.workers)
        model = await asyncio.to_thread(self._load, folder, self._config.settings, counts)
        self._repository.add(model)
        self._metrics.watch(model)
        assert isinstance(model.batcher, Batcher)
        self._batchers[number] = model.batcher
        self._served[number] = served_model(model, model.batcher)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._shake_hands(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, connection: socket.socket) -> None:
        announcement = Announcement(models=self._served)
        try:
            files = await announce(connection, announcement)
        except OSError as error:
            # One that queued while no backend was there, and ended meanwhile.
            _log.info("a worker went before it was served: %s", error)
            connection.close()
            return
        models = {}
        for number, file in files.items():
            shape = announcement.models[number].arena_shape
            models[number] = self._batchers[number], Arena(file, shape)
            os.close(file)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: _WorkerConnection(self, models), sock=connection
        )

    def drain_finished(self) -> None:
        """Drain the models that no worker has more requests for, so that they wait for no fuller batches."""
        for number, batcher in self._batchers.items():
            if self.workers and all(number in worker.requests.drained for worker in self.workers):
                task = asyncio.create_task(batcher.drain())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


class _ModelCounts:
    """Counts the batches of one model, and lets the workers have back the slots that each batch read."""

    def __init__(self, number: int, metrics: Metrics, workers: "Collection[_WorkerConnection]") -> None:
        self._number = number
        self._metrics = metrics
        self._workers = workers

    def count_batch(self, model: str, stats: BatchStats) -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._metrics.count_batch(model, stats)
        for worker in self._workers:
            worker.requests.batch_finished(self._number)

    def count_misses(self, model: str, misses: Misses) -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._metrics.count_misses(model, misses)


class _WorkerConnection(asyncio.Protocol):
    """Carries the records of one worker."""

    def __init__(self, backend: BackendProcess, models: Mapping[int, tuple[Batcher, Arena]]) -> None:
        self._backend = backend
        self._models = models

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio.Transport.
        write = cast("asyncio.WriteTransport", transport).write
        self.requests = RemoteRequests(self._models, write)
        self._backend.workers.add(self)

    def data_received(self, data: bytes) -> None:
        self.requests.receive(data)
        if self.requests.drained:
            self._backend.drain_finished()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._backend.workers.discard(self)
        self.requests.disconnect()
        self._backend.drain_finished()


def main(load: LoadModel = load_model) -> None:
    """Run the process; `load` opens a package as `fuseline.serve.model.load_model` does."""

    async def work(config: ProcessConfig, channel: ControlChannel) -> None:
        with suppress(asyncio.CancelledError):
            await BackendProcess(config, channel, load).run()

    run_child(work)


if __name__ == "__main__":
    main()
