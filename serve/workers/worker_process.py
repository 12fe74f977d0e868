"""`python -m fuseline.serve.workers.worker_process CONFIG`: a front end that shares the gRPC port with its siblings."""

import asyncio
import itertools
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from fuseline.serve.errors import ShuttingDownError
from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.tls_metrics import show_certificates
from fuseline.serve.model import Model
from fuseline.serve.process.server_log import server_log
from fuseline.serve.repository import Repository
from fuseline.serve.server import Server
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.tls.certificates import Certificates, files_of_descriptors
from fuseline.serve.tracing.tracing import open_tracer
from fuseline.serve.workers.backend_link import BackendLink
from fuseline.serve.workers.child_process import ProcessConfig, exit_at_once, follow_supervisor, run_child, send_report
from fuseline.serve.workers.control_channel import ControlChannel
from fuseline.serve.workers.remote_control import RemoteModelControl
from fuseline.serve.workers.reports import ModelCounts, statistics_from
from fuseline.serve.workers.worker_registrar import WorkerRegistrar

_REPORT_EVERY_S = 1.0
"""Seconds between reports: little of what a worker has counted is lost if it dies."""


class BackendModels:
    """A `ModelSource`: the backend process computes the models, the supervisor sums up what all processes counted."""

    is_loading = False

    def __init__(self, door: socket.socket, channel: ControlChannel, registrar: WorkerRegistrar) -> None:
        """`door` is the outer end of that of the backend process."""
        self._door = door
        self._repository = Repository()
        self._link: BackendLink | None = None
        self._channel = channel
        self._registrar = registrar
        self._stopped = False
        self._question_numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def load(self, repository: Repository) -> None:
        """Wait for the backend process and for the shared memory of the server.

        From then on `repository` has the models of the backend process.
        """
        self._repository = repository
        self._link = BackendLink(self._door, repository)
        await self._link.open()
        await self._registrar.join()

    async def keep_loaded(self, on_change: Callable[[bool], Awaitable[None]]) -> NoReturn:
        """Wait, after `load`, for the backend process whenever it is lost.

        `on_change` is called with False when it is lost, and with True when it is back.
        """
        assert self._link is not None
        await self._link.keep_connected(on_change)

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """Return the statistics that the supervisor answers with."""
        models = (await self.ask("statistics"))["models"]
        counts = {name: ModelCounts.model_validate(its) for name, its in models.items()}
        return defaultdict(InferenceStatistics, statistics_from(counts))

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """Return the metrics that the supervisor answers with."""
        text: str = (await self.ask("open_metrics" if open_metrics else "metrics"))["text"]
        return text.encode()

    async def close(self) -> None:
        """Do nothing: the backend process loads the models, and ends after the workers."""

    def served(self) -> list[Model]:
        """Return the models that this worker knows now."""
        return list(self._repository)

    def stop(self) -> None:
        """Refuse what is asked from now on, and what still waits: the supervisor is not listened to any more."""
        self._stopped = True
        for question in self._questions.values():
            if not question.done():
                question.set_exception(_stopping())

    def take_answer(self, message: dict[str, Any]) -> None:
        """Receive the supervisor's answer to a question."""
        if (question := self._questions.pop(message["number"], None)) is not None and not question.done():
            question.set_result(message)

    async def ask(self, kind: str, **contents: Any) -> dict[str, Any]:
        """Send the supervisor a question of a kind, and return its answer. Raises `ShuttingDownError` after `stop`."""
        if self._stopped:
            raise _stopping()
        number = next(self._question_numbers)
        question: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        try:
            self._channel.send(kind, number=number, **contents)
            answer: dict[str, Any] = await question
            return answer
        finally:
            self._questions.pop(number, None)


class _Health:
    """Sets the health of a worker's server: it serves while it is connected to a backend that gives signs of life."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connected = True
        self._answers = True
        self._setting: set[asyncio.Task[None]] = set()

    async def set_connected(self, connected: bool) -> None:
        """Note that the backend process was lost, or is back."""
        self._connected = connected
        # A process that has just come back answers; the supervisor says so a moment later.
        self._answers = self._answers or connected
        await self._set()

    def backend_answers(self, *, answers: bool) -> None:
        """Note what the supervisor says of the backend process."""
        self._answers = answers
        task = asyncio.create_task(self._set())
        self._setting.add(task)
        task.add_done_callback(self._setting.discard)

    async def _set(self) -> None:
        # While it starts, the server sets its health itself.
        if self._server.ready:
            await self._server.set_health(serving=self._connected and self._answers)


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down; ask again once it is back")


async def _work(config: ProcessConfig, channel: ControlChannel) -> None:
    registrar = WorkerRegistrar(channel, SharedMemoryRegions(config.why_no_shared_memory))
    models = BackendModels(socket.socket(fileno=config.door_file), channel, registrar)
    metrics = Metrics(
        open_tracer(config.title),
        served=lambda: [(model.name, model.version) for model in models.served()],
        process=config.title,
    )
    file = config.http_listener_file
    certificates = certificates_of(config)
    if certificates is not None:
        show_certificates(certificates, metrics.registry, counts=False)
    server = Server(
        config.settings,
        models,
        metrics,
        shares_port=True,
        registrar=registrar,
        http_listener=None if file is None else socket.socket(fileno=file),
        certificates=certificates,
        control=RemoteModelControl(models.ask, models.served),
        watch=lambda is_watched: channel.send("watch", is_watched=is_watched),
        boot=config.boot,
    )

    health = _Health(server)

    def on_message(message: dict[str, Any]) -> None:
        if message["kind"] == "backend":
            server.liveness.backend_hangs = not message["live"]
            health.backend_answers(answers=message["answers"])
            return
        if message["kind"] == "chunk":
            server.hub.publish(message["chunk"])
            return
        (registrar.take if message["kind"] == "regions" else models.take_answer)(message)

    following = asyncio.create_task(follow_supervisor(channel, metrics, on_message))
    await server.start()
    if (log := server_log()) is not None:
        log.on_change = lambda settings: channel.send("log", settings=settings.model_dump())
    channel.send("ready")

    async def report() -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            send_report(channel, metrics)

    reporting = asyncio.create_task(report())
    keeping = asyncio.create_task(models.keep_loaded(health.set_connected))
    await asyncio.wait((following, keeping), return_when=asyncio.FIRST_COMPLETED)
    reporting.cancel()
    registrar.stop()
    models.stop()
    if keeping.done():
        keeping.result()
    complete = True
    try:
        await server.drain()
    except TimeoutError:
        complete = False
    keeping.cancel()
    send_report(channel, metrics)
    channel.send("drained", complete=complete)
    if not complete:
        await exit_at_once(channel)


def certificates_of(config: ProcessConfig) -> Certificates | None:
    """Return the certificate that a worker shows; None: its ports are plain. The descriptors of the copy are closed."""
    if (files := config.settings.certificate_files) is None:
        return None
    certificates = Certificates(files, copy=files_of_descriptors(config.certificate_copy), is_quiet=True)
    for descriptor in config.certificate_copy:
        os.close(descriptor)
    return certificates


def main() -> None:
    """Run the process."""
    run_child(_work)


if __name__ == "__main__":
    main()
