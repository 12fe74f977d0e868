"""`python -m fuseline.serve.workers.backend_process CONFIG`: the process that owns models, batchers and the device."""

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.liveness import Liveness
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from fuseline.serve.model import BatchCounts, Model, load_model
from fuseline.serve.model_control.control import IndexEntry
from fuseline.serve.model_control.local_control import LocalModelControl
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings
from fuseline.serve.tracing.tracing import open_tracer
from fuseline.serve.workers.child_process import ProcessConfig, exit_at_once, follow_supervisor, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.error_text import text_from_error
from fuseline.serve.workers.worker_doors import WorkerDoors

_FLUSH_S = 0.1

_log = logging.getLogger(__name__)


class LoadModel(Protocol):
    """What loads a package as `fuseline.serve.model.load_model` does."""

    def __call__(
        self,
        folder: Path,
        settings: Settings,
        counts: BatchCounts,
        *,
        name: str,
        version: str,
        beside: LaneChoice | None,
    ) -> Model:
        """See `fuseline.serve.model.load_model`."""
        ...


class BackendProcess:
    """Loads models, then serves the workers that connect, until it is told to drain."""

    def __init__(self, config: ProcessConfig, channel: ControlChannel, load: LoadModel) -> None:
        settings = config.settings
        self._config = config
        self._channel = channel
        self._load_model = load
        self._metrics = Metrics(open_tracer(config.title), process=config.title)
        if config.settings.triton_metrics:
            self._metrics.registry.register(TritonMetrics(self._metrics))
        self._repository = Repository()
        self._doors = WorkerDoors(
            self._repository, settings.drain_timeout_s, tracer=self._metrics.tracer, feed=self._metrics.feed
        )
        self._control = LocalModelControl(config.folders, settings, self._metrics, self._load)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the supervisor says to drain. Raises what `LocalModelControl.start` does."""
        settings = self._config.settings
        if self._config.again:
            await self._control.start_again(self._doors, self._config.wanted or (), self._tell_of_waiting)
        else:
            await self._control.start(self._doors)
        door = socket.socket(fileno=self._config.door_file)
        living = asyncio.create_task(self._live())
        accepting = asyncio.create_task(self._doors.accept(door))
        served = self._doors.served.values()
        wanted = None
        if settings.model_control_mode != "poll":
            wanted = list(dict.fromkeys(its.name for its in served if its.folder not in self._config.folders))
        self._channel.send("ready", models=[its.model_dump(mode="json") for its in served], wanted=wanted)
        await follow_supervisor(self._channel, self._metrics, self._take)
        accepting.cancel()
        living.cancel()
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await self._control.close()
                await self._repository.close()
        except TimeoutError:
            self._channel.send("drained", complete=False)
            await exit_at_once(self._channel)
        if self._metrics.tracer is not None:
            await asyncio.to_thread(self._metrics.tracer.close)
        send_report(self._channel, self._metrics)
        self._channel.send("drained", complete=True)
        if self._control.is_loading or any(model.has_hung for model in self._repository):
            # Nothing can interrupt a load, and a normal exit would wait for it; the runtime of a hung call may be
            # called no more, not even to end.
            await exit_at_once(self._channel, 0)

    async def _live(self) -> None:
        """End this process once no lane of a model computes any more; the supervisor starts it again."""

        async def nobody_asks(_serving: bool) -> None:
            """Health is the workers' matter."""

        liveness = Liveness(lambda: (model.batcher for model in self._repository), 0, nobody_asks)
        watching = asyncio.create_task(liveness.run())
        try:
            await liveness.lost_for(0)
        finally:
            watching.cancel()
        _log.error("a backend hangs, and no lane is left that computes: this process ends, to be started again")
        # What was failed has to reach the workers.
        await asyncio.sleep(_FLUSH_S)
        await exit_at_once(self._channel)

    def _load(self, folder: Path, name: str, version: str, beside: LaneChoice | None) -> Model:
        load = partial(self._load_model, folder, self._config.settings, name=name, version=version, beside=beside)
        return self._doors.load(load, self._metrics)

    def _tell_of_waiting(self, entries: list[IndexEntry]) -> None:
        """Let the supervisor say why no model is served, and what was counted."""
        self._channel.send("waiting", entries=entries)
        send_report(self._channel, self._metrics)

    def _take(self, message: dict[str, Any]) -> None:
        """Receive a question about models that come and go. Each is answered when it is done, in any order."""
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: dict[str, Any]) -> None:
        entries: list[IndexEntry] = []
        error = None
        try:
            match message["action"]:
                case "load":
                    await self._control.load(message["name"], message["parameters"])
                case "unload":
                    await self._control.unload(message["name"], unload_dependents=message["unload_dependents"])
                case "index":
                    entries = await self._control.index(ready=message["ready"])
        except Exception as raised:  # noqa: BLE001 the boundary: the worker that asked raises it
            error = text_from_error(raised)
        self._channel.send("control", number=message["number"], error=error, entries=entries)


def main(load: LoadModel = load_model) -> None:
    """Run the process; `load` opens a package as `fuseline.serve.model.load_model` does."""

    async def work(config: ProcessConfig, channel: ControlChannel) -> None:
        with suppress(asyncio.CancelledError):
            await BackendProcess(config, channel, load).run()

    run_child(work)


if __name__ == "__main__":
    main()
