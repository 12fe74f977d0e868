"""What the worker and backend processes have in common: their config, their control channel, and how they end."""

import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fuseline.serve.errors import FuselineError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.process.event_loop import run_event_loop
from fuseline.serve.process.server_log import LogSettings, end_process, server_log, start_log
from fuseline.serve.settings import Settings
from fuseline.serve.workers.control_channel import ControlChannel, open_control_channel
from fuseline.serve.workers.reports import report_of

_ORPHANED_EXIT_CODE = 3


class ProcessConfig(BaseModel):
    """Configuration of a process: JSON in its one argument."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    """Name of the process in its log lines."""
    settings: Settings
    folders: tuple[Path, ...]
    channel_file: int
    """Descriptor of this end of the control channel."""
    lifeline_file: int
    """Descriptor of a pipe that ends when the supervisor does."""
    door_file: int
    """Descriptor of an end of the door between workers and the backend: the inner one for the backend, else the outer.
    """
    socket_folder: Path | None = None
    """Folder of the workers' sockets; deleted when the supervisor ends. None: they need none."""
    again: bool = False
    """Whether the process is started again, in the place of one that was ready."""
    wanted: tuple[str, ...] | None = None
    """Names of the repository's models that were served before the backend process was started again; None: the
    repository tells them, or it is started for the first time."""
    http_listener_file: int | None = None
    """Descriptor of the listening socket of HTTP, for a worker; None: no HTTP."""
    certificate_copy: tuple[int, ...] = ()
    """Descriptors of the certificate, its key and, where there is one, the clients' CA, as the supervisor read them
    last, for a worker that starts while the files are broken."""
    boot: str = ""
    """Names this run of the server, in all its processes."""
    why_no_shared_memory: str | None = None
    """The supervisor's `Settings.why_no_shared_memory`: it may listen where this process doesn't."""


def run_child(work: Callable[[ProcessConfig, ControlChannel], Awaitable[None]]) -> None:
    """Run `work` with the config in `sys.argv[1]`; send a `FuselineError` that it raises to the supervisor.

    SIGTERM, SIGINT and SIGHUP are left to the supervisor, which drains its processes in order. When the supervisor is
    gone, however it ended, this process ends at once.
    """
    config = ProcessConfig.model_validate_json(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_supervisor, args=(config,), name="fuseline-lifeline", daemon=True).start()
    start_log(config.title, config.settings.log_format)
    run_event_loop(_run(work, config))


async def _run(work: Callable[[ProcessConfig, ControlChannel], Awaitable[None]], config: ProcessConfig) -> None:
    channel = await open_control_channel(socket.socket(fileno=config.channel_file))
    try:
        await work(config, channel)
    except FuselineError as error:
        channel.send("failed", error=type(error).__name__, message=str(error))
    await channel.finish()


async def follow_supervisor(
    channel: ControlChannel, metrics: Metrics, on_message: Callable[[dict[str, Any]], None]
) -> None:
    """Answer the supervisor's pings and its questions for a report, log and tell of what happens as it says, until it
    says `drain`.

    Other messages go to `on_message`.
    """
    async for message in channel.messages():
        if message["kind"] == "report":
            send_report(channel, metrics, message["number"])
        elif message["kind"] == "ping":
            channel.send("pong")
        elif message["kind"] == "log":
            if (log := server_log()) is not None:
                log.apply(LogSettings.model_validate(message["settings"]))
        elif message["kind"] == "feed":
            if rate := message["rate"]:
                metrics.feed.start(lambda chunk: channel.send_if_room("chunk", chunk=chunk), rate)
            else:
                metrics.feed.stop()
        elif message["kind"] == "drain":
            return
        else:
            on_message(message)


def send_report(channel: ControlChannel, metrics: Metrics, number: int | None = None) -> None:
    """Send the supervisor everything that this process has counted; `number` is that of its question, if it asked."""
    report = report_of(metrics.registry, metrics.statistics)
    # What went is dropped as the metrics are collected, so that this is told by the same report.
    report.dropped = metrics.registry.take_dropped()
    channel.send("report", number=number, report=report.model_dump(mode="json"))


async def exit_at_once(channel: ControlChannel, code: int = 1) -> None:
    """End this process although something in it may hang, for which a normal exit would wait."""
    await channel.finish()
    end_process(code)


def _end_with_supervisor(config: ProcessConfig) -> None:
    """End this process when the supervisor has ended. It runs in a thread of its own, as the event loop may be busy."""
    os.read(config.lifeline_file, 1)
    if config.socket_folder is not None:
        shutil.rmtree(config.socket_folder, ignore_errors=True)
    end_process(_ORPHANED_EXIT_CODE)
