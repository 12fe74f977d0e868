"""`python -m fuseline.serve.workers.backend_process CONFIG`: the process that owns the models, their batchers and the device."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from fuseline.serve.batching.batcher import Batcher, BatchStats, Misses
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import BatchCounts, Model, load_model
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.child_process import ProcessConfig, follow_supervisor, give_up, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.handshake import Welcome, welcome_to, welcome_worker
from fuseline.serve.workers.remote_requests import RemoteRequests

LoadModel = Callable[[Path, Settings, BatchCounts], Model]

_log = logging.getLogger(__name__)


class BackendProcess:
    """Loads models, then serves the workers that connect, until it is told to drain."""

    def __init__(self, config: ProcessConfig, channel: ControlChannel, load: LoadModel) -> None:
        self._config = config
        self._channel = channel
        self._load = load
        self._metrics = Metrics()
        self._repository = Repository()
        self._models: list[Model] = []
        self.batchers: list[Batcher] = []
        self.workers: set[_WorkerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve. Raises what `load_model` does."""
        settings = self._config.settings
        for folder in self._config.folders:
            model = await asyncio.to_thread(self._load, folder, settings, self)
            self._repository.add(model)
            self._metrics.watch(model)
            self._models.append(model)
            assert isinstance(model.batcher, Batcher)
            self.batchers.append(model.batcher)
        welcome = welcome_to(self._models, self.batchers)
        assert self._config.listener_file is not None
        listener = socket.socket(fileno=self._config.listener_file)
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener, welcome))
        self._channel.send("ready", welcome=welcome.model_dump(mode="json"))
        await follow_supervisor(
            self._channel, self._metrics.registry, self._metrics.statistics, on_message=lambda _: None
        )
        accepting.cancel()
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await self._repository.close()
        except TimeoutError:
            self._channel.send("drained", complete=False)
            await give_up(self._channel)
        send_report(self._channel, self._metrics.registry, self._metrics.statistics)
        self._channel.send("drained", complete=True)

    async def _accept(self, listener: socket.socket, welcome: Welcome) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._welcome(connection, welcome))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _welcome(self, connection: socket.socket, welcome: Welcome) -> None:
        try:
            files = await welcome_worker(connection, welcome)
        except OSError as error:
            # One that queued while no backend was there, and ended meanwhile.
            _log.info("a worker went before it was served: %s", error)
            connection.close()
            return
        arenas = []
        for file, model in zip(files, welcome.models, strict=True):
            arenas.append(Arena(file, model.arena_shape(self._config.settings.max_queue_rows)))
            os.close(file)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: _WorkerConnection(self, arenas), sock=connection
        )

    def note_change(self) -> None:
        """Wait for no fuller batches of a model that no worker has more requests for."""
        for position, batcher in enumerate(self.batchers):
            if self.workers and all(position in worker.requests.drained for worker in self.workers):
                task = asyncio.create_task(batcher.drain())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def count_misses(self, model: str, misses: Misses) -> None:
        """See `fuseline.serve.model.BatchCounts`."""
        self._metrics.count_misses(model, misses)

    def count_batch(self, model: str, stats: BatchStats) -> None:
        """See `fuseline.serve.model.BatchCounts`; also let the workers have back what the batch read."""
        self._metrics.count_batch(model, stats)
        position = next(index for index, its in enumerate(self._models) if its.name == model)
        for worker in self.workers:
            worker.requests.batch_finished(position)


class _WorkerConnection(asyncio.Protocol):
    """Carries the records of one worker."""

    def __init__(self, backend: BackendProcess, arenas: list[Arena]) -> None:
        self._backend = backend
        self._arenas = arenas

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no asyncio.Transport by class.
        write = cast("asyncio.WriteTransport", transport).write
        self.requests = RemoteRequests(self._backend.batchers, self._arenas, write)
        self._backend.workers.add(self)

    def data_received(self, data: bytes) -> None:
        self.requests.receive(data)
        if self.requests.drained:
            self._backend.note_change()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._backend.workers.discard(self)
        self.requests.lose()
        self._backend.note_change()


def main(load: LoadModel = load_model) -> None:
    """Run the process; `load` opens a package as `fuseline.serve.model.load_model` does."""

    async def work(config: ProcessConfig, channel: ControlChannel) -> None:
        with suppress(asyncio.CancelledError):
            await BackendProcess(config, channel, load).run()

    run_child(work)


if __name__ == "__main__":
    main()
