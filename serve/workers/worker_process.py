"""`python -m fuseline.serve.workers.worker_process CONFIG`: a front end that shares the gRPC port with its siblings."""

import asyncio
import itertools
import logging
import socket
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.repository import Repository
from fuseline.serve.server import Server
from fuseline.serve.server_log import server_log
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.tracing.tracing import open_tracer
from fuseline.serve.workers.backend_link import BackendChangedError, BackendLink
from fuseline.serve.workers.child_process import ProcessConfig, exit_at_once, follow_supervisor, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.reports import ModelCounts, statistics_from
from fuseline.serve.workers.worker_registrar import WorkerRegistrar

_REPORT_EVERY_S = 1.0
"""Seconds between reports: little of what a worker has counted is lost if it dies."""

_log = logging.getLogger(__name__)


class BackendModels:
    """A `ModelSource`: the backend process computes the models, the supervisor sums up what all processes counted."""

    def __init__(self, link: BackendLink, channel: ControlChannel, registrar: WorkerRegistrar) -> None:
        self._link = link
        self._channel = channel
        self._registrar = registrar
        self._question_numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def load(self, repository: Repository) -> None:
        """Wait for the backend process and for the shared memory of the server, and add the models to `repository`."""
        await self._link.open()
        await self._registrar.join()
        for model in self._link.models:
            repository.add(model)

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """Return the statistics that the supervisor answers with."""
        models = (await self._ask("statistics"))["models"]
        counts = {name: ModelCounts.model_validate(its) for name, its in models.items()}
        return defaultdict(InferenceStatistics, statistics_from(counts))

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """Return the metrics that the supervisor answers with."""
        text: str = (await self._ask("open_metrics" if open_metrics else "metrics"))["text"]
        return text.encode()

    def take_answer(self, message: dict[str, Any]) -> None:
        """Receive the supervisor's answer to a question."""
        if (question := self._questions.pop(message["number"], None)) is not None and not question.done():
            question.set_result(message)

    async def _ask(self, kind: str) -> dict[str, Any]:
        number = next(self._question_numbers)
        question: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        try:
            self._channel.send(kind, number=number)
            answer: dict[str, Any] = await question
            return answer
        finally:
            self._questions.pop(number, None)


async def _work(config: ProcessConfig, channel: ControlChannel) -> None:
    metrics = Metrics(open_tracer(config.title))
    registry, statistics = metrics.registry, metrics.statistics
    link = BackendLink(config.link_address)
    registrar = WorkerRegistrar(channel, SharedMemoryRegions(config.why_no_shared_memory))
    models = BackendModels(link, channel, registrar)
    file = config.http_listener_file
    server = Server(
        config.settings,
        models,
        metrics,
        shares_port=True,
        registrar=registrar,
        http_listener=None if file is None else socket.socket(fileno=file),
    )

    def on_message(message: dict[str, Any]) -> None:
        (registrar.take if message["kind"] == "regions" else models.take_answer)(message)

    following = asyncio.create_task(follow_supervisor(channel, registry, statistics, on_message))
    await server.start()
    if (log := server_log()) is not None:
        log.on_change = lambda settings: channel.send("log", settings=settings.model_dump())
    channel.send("ready")

    async def report() -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            send_report(channel, registry, statistics)

    reporting = asyncio.create_task(report())
    keeping = asyncio.create_task(link.keep_connected(lambda is_there: server.set_health(serving=is_there)))
    await asyncio.wait((following, keeping), return_when=asyncio.FIRST_COMPLETED)
    reporting.cancel()
    registrar.stop()
    if keeping.done():
        with suppress(BackendChangedError):
            keeping.result()
        _log.warning("%s; this worker ends, to be started again", keeping.exception())
        await exit_at_once(channel)
    complete = True
    try:
        await server.drain()
    except TimeoutError:
        complete = False
    keeping.cancel()
    send_report(channel, registry, statistics)
    channel.send("drained", complete=complete)
    if not complete:
        await exit_at_once(channel)


def main() -> None:
    """Run the process."""
    run_child(_work)


if __name__ == "__main__":
    main()
