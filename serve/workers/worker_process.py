"""`python -m fuseline.serve.workers.worker_process CONFIG`: a front end that shares the gRPC port with its siblings."""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.server import Server
from fuseline.serve.workers.backend_link import BackendChangedError, BackendLink
from fuseline.serve.workers.child_process import ProcessConfig, follow_supervisor, give_up, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.reports import ModelCounts, statistics_from

_REPORT_EVERY_S = 1.0
"""So that little of what it has counted is lost with a worker that dies."""

_log = logging.getLogger(__name__)


class WorkerServer(Server):
    """A `Server` whose models are computed by the backend process."""

    _shares_port = True

    def __init__(self, config: ProcessConfig, channel: ControlChannel) -> None:
        super().__init__(config.folders, config.settings)
        self.link = BackendLink(config.link_address, config.settings)
        self._channel = channel
        self._question_numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[dict[str, InferenceStatistics]]] = {}

    @property
    def metrics(self) -> Metrics:
        """What this process counts."""
        return self._metrics

    async def tell_backend(self, is_there: bool) -> None:
        """Let health checks know whether requests can be answered."""
        await self._tell_health(serving=is_there)

    def take_statistics(self, message: dict[str, Any]) -> None:
        """Take in the supervisor's answer to `_statistics`."""
        if (question := self._questions.pop(message["number"], None)) is not None and not question.done():
            models = {name: ModelCounts.model_validate(counts) for name, counts in message["models"].items()}
            question.set_result(statistics_from(models))

    async def _add_models(self) -> None:
        await self.link.open()
        for model in self.link.models:
            self.repository.add(model)

    async def _statistics(self) -> Mapping[str, InferenceStatistics]:
        number = next(self._question_numbers)
        self._questions[number] = question = asyncio.get_running_loop().create_future()
        try:
            self._channel.send("statistics", number=number)
            return defaultdict(InferenceStatistics, await question)
        finally:
            self._questions.pop(number, None)


async def _work(config: ProcessConfig, channel: ControlChannel) -> None:
    server = WorkerServer(config, channel)
    registry, statistics = server.metrics.registry, server.metrics.statistics
    await server.start()
    channel.send("ready")

    async def report() -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            send_report(channel, registry, statistics)

    reporting = asyncio.create_task(report())
    keeping = asyncio.create_task(server.link.keep(server.tell_backend))
    following = asyncio.create_task(follow_supervisor(channel, registry, statistics, on_message=server.take_statistics))
    await asyncio.wait((following, keeping), return_when=asyncio.FIRST_COMPLETED)
    reporting.cancel()
    if keeping.done():
        with suppress(BackendChangedError):
            keeping.result()
        _log.warning("%s; this worker ends, to be started again", keeping.exception())
        await give_up(channel)
    complete = True
    try:
        await server.drain()
    except TimeoutError:
        complete = False
    keeping.cancel()
    send_report(channel, registry, statistics)
    channel.send("drained", complete=complete)
    if not complete:
        await give_up(channel)


def main() -> None:
    """Run the process."""
    run_child(_work)


if __name__ == "__main__":
    main()
