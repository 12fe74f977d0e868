"""A process that the supervisor has started."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fuseline.serve import errors
from fuseline.serve.errors import BackendError, FuselineError
from fuseline.serve.process.server_log import LogSettings
from fuseline.serve.workers.child_process import ProcessConfig
from fuseline.serve.workers.control_channel import ControlChannel, open_control_channel
from fuseline.serve.workers.process_counts import ProcessCounts
from fuseline.serve.workers.reports import Report, report_text

_log = logging.getLogger(__name__)


class SupervisedProcess:
    """A worker or backend process: whether it is ready, what it has counted, how it ended."""

    def __init__(self, title: str, process: asyncio.subprocess.Process, channel: ControlChannel) -> None:
        self.title = title
        self.started = asyncio.get_running_loop().time()
        self.ready: dict[str, Any] | None = None
        """Message that the process sent when it became ready; None before."""
        self.failure: FuselineError | None = None
        """Reason why the process could not start, if it sent one."""
        self.drained = False
        """Whether the process has reported that it answered everything before its end."""
        self.heard = self.started
        """Time of the event loop at which the process last sent anything."""
        self.counted = ProcessCounts()
        """What it has counted."""
        self._process = process
        self._channel = channel
        self._questions: dict[int, asyncio.Event] = {}

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    async def run(
        self,
        on_ready: Callable[[], None],
        on_question: Callable[[str, int], None],
        on_log: Callable[[LogSettings], None],
        on_regions: Callable[[dict[str, Any]], None],
        on_control: Callable[[dict[str, Any]], None],
        on_dropped: Callable[[], None],
        on_wait: Callable[[list[Any]], None],
        on_feed: Callable[[dict[str, Any]], None],
    ) -> None:
        """Read the process's messages until it has ended.

        `on_ready` is called when it becomes ready, `on_question` with the kind and number of each question: for the
        `statistics` or the `metrics` of all processes, or these as `open_metrics`, `on_log` with settings of the log
        for all processes, `on_regions` with each message about shared memory, `on_control` with each about models that
        come and go. `on_dropped` is called when it says that it has dropped counts, `on_wait` with the index of one
        that can serve no model yet, `on_feed` with each message about the feed.
        """
        loop = asyncio.get_running_loop()
        async for message in self._channel.messages():
            self.heard = loop.time()
            match message["kind"]:
                case "ready":
                    self.ready = message
                    on_ready()
                case "failed":
                    error_class = getattr(errors, message["error"], BackendError)
                    self.failure = error_class(message["message"])
                case "report":
                    self.counted.take(report := Report.model_validate(message["report"]))
                    if report.dropped:
                        on_dropped()
                    if (answered := self._questions.pop(message["number"], None)) is not None:
                        answered.set()
                case "statistics" | "metrics" | "open_metrics" as kind:
                    on_question(kind, message["number"])
                case "log":
                    on_log(LogSettings.model_validate(message["settings"]))
                case "regions":
                    on_regions(message)
                case "control":
                    on_control(message)
                case "waiting":
                    on_wait(message["entries"])
                case "watch" | "chunk":
                    on_feed(message)
                case "drained":
                    self.drained = message["complete"]
        await self._process.wait()
        self._channel.close()
        for answered in self._questions.values():
            answered.set()

    async def update_report(self, number: int) -> None:
        """Bring `counted` up to date, or return when the process ends; `number` is no other question's."""
        self._questions[number] = answered = asyncio.Event()
        self._channel.send("report", number=number)
        try:
            await answered.wait()
        finally:
            self._questions.pop(number, None)

    def answer(self, kind: str, number: int, report: Report) -> None:
        """Answer the process's question `number`, of `kind`, from the sum of all reports."""
        if kind == "statistics":
            models = {name: counts.model_dump(mode="json") for name, counts in report.models.items()}
            self._channel.send(kind, number=number, models=models)
        else:
            self._channel.send(
                kind, number=number, text=report_text(report, open_metrics=kind == "open_metrics").decode()
            )

    def send_log_settings(self, settings: LogSettings) -> None:
        """Let the process log by `settings`."""
        self._channel.send("log", settings=settings.model_dump())

    def send_regions(self, **contents: Any) -> None:
        """Send the process a message about shared memory."""
        self._channel.send("regions", **contents)

    def ping(self) -> None:
        """Ask the process for a sign of life."""
        self._channel.send("ping")

    def send_backend(self, *, answers: bool, live: bool) -> None:
        """Tell a worker whether the backend process gives signs of life, and whether it may yet give one."""
        self._channel.send("backend", answers=answers, live=live)

    def send_feed(self, rate: float) -> None:
        """Have the process tell of what happens, at most `rate` batches and requests in a second; 0: of nothing."""
        self._channel.send("feed", rate=rate)

    def send_chunk(self, chunk: str) -> None:
        """Send a worker what a process tells of what happens, unless it hangs."""
        self._channel.send_if_room("chunk", chunk=chunk)

    def send_control(self, **contents: Any) -> None:
        """Send the process a message about models that come and go."""
        self._channel.send("control", **contents)

    def drain(self) -> None:
        """Let the process answer what it has and end; if it is not ready it has nothing, and ends at once."""
        if self.ready is None:
            self.kill()
        else:
            self._channel.send("drain")

    def kill(self) -> None:
        """End the process at once."""
        if self._process.returncode is None:
            self._process.kill()

    def ending(self) -> str:
        """Return how the process ended, for people."""
        code = self._process.returncode
        if code is not None and code < 0:
            return f"{self.title} (process {self.pid}) was ended by {signal.Signals(-code).name}"
        return f"{self.title} (process {self.pid}) ended with exit code {code}"


async def start_process(
    title: str, command: Sequence[str], make_config: Callable[[int], ProcessConfig], files: Sequence[int]
) -> SupervisedProcess:
    """Start `python COMMAND CONFIG` in a fresh interpreter with this one's search path.

    `make_config` is given the descriptor of the process's end of its channel; `files` are the other descriptors that
    the process inherits.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                *command,
                make_config(theirs.fileno()).model_dump_json(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *files),
                # A terminal's Ctrl-C goes to the supervisor alone: the process can ignore it only once it has started.
                process_group=0,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},  # noqa: PTH109
            )
        except BaseException:
            ours.close()
            raise
    return SupervisedProcess(title, process, await open_control_channel(ours))
