"""`python -m fuseline.serve.workers.backend_process CONFIG`: the process that owns models, batchers and the device."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fuseline.serve.liveness import Liveness
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import BatchCounts, Model, load_model
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings
from fuseline.serve.workers.child_process import ProcessConfig, exit_at_once, follow_supervisor, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.worker_doors import WorkerDoors

_FLUSH_S = 0.1

_log = logging.getLogger(__name__)

LoadModel = Callable[[Path, Settings, BatchCounts], Model]


class BackendProcess:
    """Loads models, then serves the workers that connect, until it is told to drain."""

    def __init__(self, config: ProcessConfig, channel: ControlChannel, load: LoadModel) -> None:
        self._config = config
        self._channel = channel
        self._load = load
        self._metrics = Metrics()
        self._doors = WorkerDoors(Repository(), config.settings.drain_timeout_s)

    async def run(self) -> None:
        """Serve until the supervisor says to drain. Raises what `load_model` does."""
        settings = self._config.settings
        for folder in self._config.folders:
            await self._add_model(folder)
        assert self._config.listener_file is not None
        listener = socket.socket(fileno=self._config.listener_file)
        listener.setblocking(False)
        accepting = asyncio.create_task(self._doors.accept(listener))
        self._channel.send("ready", models=[its.model_dump(mode="json") for its in self._doors.served.values()])
        living = asyncio.create_task(self._live())
        await follow_supervisor(
            self._channel, self._metrics.registry, self._metrics.statistics, on_message=lambda _: None
        )
        accepting.cancel()
        living.cancel()
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await self._doors.repository.close()
        except TimeoutError:
            self._channel.send("drained", complete=False)
            await exit_at_once(self._channel)
        send_report(self._channel, self._metrics.registry, self._metrics.statistics)
        self._channel.send("drained", complete=True)
        if any(model.has_hung for model in self._doors.repository):
            # The runtime may be called no more, not even to end.
            await exit_at_once(self._channel, 0)

    async def _live(self) -> None:
        """End this process once no lane of a model computes any more; the supervisor starts it again."""

        async def nobody_asks(_serving: bool) -> None:
            """Health is the workers' matter."""

        liveness = Liveness(lambda: (model.batcher for model in self._doors.repository), 0, nobody_asks)
        watching = asyncio.create_task(liveness.run())
        try:
            await liveness.lost_for(0)
        finally:
            watching.cancel()
        _log.error("a backend hangs, and no lane is left that computes: this process ends, to be started again")
        # What was failed has to reach the workers.
        await asyncio.sleep(_FLUSH_S)
        await exit_at_once(self._channel)

    async def _add_model(self, folder: Path) -> None:
        load = partial(self._load, folder, self._config.settings)
        model = await asyncio.to_thread(self._doors.load, load, self._metrics)
        self._doors.repository.add(model)
        self._metrics.watch(model)
        await self._doors.publish(list(self._doors.repository))


def main(load: LoadModel = load_model) -> None:
    """Run the process; `load` opens a package as `fuseline.serve.model.load_model` does."""

    async def work(config: ProcessConfig, channel: ControlChannel) -> None:
        with suppress(asyncio.CancelledError):
            await BackendProcess(config, channel, load).run()

    run_child(work)


if __name__ == "__main__":
    main()
