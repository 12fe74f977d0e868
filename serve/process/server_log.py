"""The log of a server's processes, on stderr, and its settings, which clients may change while it runs."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TextIO

from pydantic import BaseModel, ConfigDict, Field

from fuseline.serve.process.log_lines import JsonLines, TextLines
from fuseline.serve.process.log_stream import LogStream
from fuseline.serve.process.log_writer import LogWriter, writer_of

LogFormat = Literal["text", "json"]

_LAST_S = 1.0
"""Longest time in seconds for which the end of a process waits for its log's reader."""

_WHY_MISSING = "whoever reads it is too slow, or its disk is full"

_OF_CLIENTS: Mapping[str, Sequence[str]] = {
    "grpc._cython.cygrpc": ("Invalid encoding on %s",),
    "python_multipart.multipart": (),
}
"""Messages, by their loggers, in which libraries tell what is wrong with what a client sent; (): all of that logger.

They are not logged: whoever reaches the port could fill the log with them, and the former has the bytes of a header.
"""

_log = logging.getLogger(__name__)


class LogSettings(BaseModel):
    """What the log holds. Names and meanings are those of Triton's logging extension."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Above 0 each request has a line."""
    log_format: Literal["default", "ISO8601"] = "default"
    """Form of the time: that of Python's logging, in local time, or ISO 8601 in UTC. JSON has RFC 3339 anyway."""


class Needed:
    """What the log needs of each request. It is looked at for each, so it is two words and no question to the log."""

    __slots__ = ("ids",)

    def __init__(self) -> None:
        self.ids = False
        """Whether each request has an object of JSON, by whose id its others are found."""


needed = Needed()
"""What the log of this process needs."""


class ServerLog(logging.Handler):
    """Writes the log of this process. There is at most one, and it stays until the process ends.

    Whoever logs never waits: a `LogWriter` writes the lines, and says where some are missing.
    """

    def __init__(self, stream: TextIO, origin: str, form: LogFormat = "text") -> None:
        """Write to `stream` in this form; each line names the `origin` of the process, if it has one."""
        super().__init__()
        self._origin = origin
        self.form = form
        """Form of the lines."""
        self.on_change: Callable[[LogSettings], None] | None = None
        """Called with the settings that `change` sets, to tell the server's other processes."""
        self.writer = LogWriter(
            writer_of(stream),
            self._notice,
            encoding=stream.encoding or "utf-8",
            errors=stream.errors or "backslashreplace",
        )
        """What writes the lines."""
        self.apply(LogSettings())

    def emit(self, record: logging.LogRecord) -> None:
        """Have the line of `record` written. Returns at once."""
        try:
            self.writer.put(self.line(record))
        except Exception:  # noqa: BLE001 as every handler of logging does: a record that can't be formatted fails nobody
            self.handleError(record)

    def line(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, with its traceback if it has one."""
        return f"{self.format(record)}\n"

    def flush(self) -> None:
        """Return once every line is written, or after a second if its reader doesn't read."""
        if isinstance(sys.stderr, LogStream):
            sys.stderr.flush()
        self.writer.flush(_LAST_S)

    def close(self) -> None:
        """Log no more, after `flush`. What the interpreter says as it ends goes to stderr itself, if that is read."""
        if self.writer.flush(0) and isinstance(sys.stderr, LogStream):
            sys.stderr = sys.stderr.stream
        super().close()

    def _notice(self, count: int) -> str:
        return self.line(line_record(logging.WARNING, f"{count} lines of the log are missing here: {_WHY_MISSING}"))

    def change(self, settings: LogSettings) -> None:
        """Log by `settings` from now on, in every process of the server."""
        # The line comes first, lest it fall to the settings that it tells of.
        _log.info("a client changes the log's settings: %s", settings)
        self.apply(settings)
        if self.on_change is not None:
            self.on_change(settings)

    def apply(self, settings: LogSettings) -> None:
        """Log by `settings` from now on, in this process."""
        self.settings = settings
        if self.form == "json":
            self.setFormatter(JsonLines(self._origin))
        else:
            self.setFormatter(TextLines(self._origin, is_utc=settings.log_format == "ISO8601"))
        needed.ids = self.form == "json" and settings.log_verbose_level > 0
        logging.getLogger("fuseline").setLevel(logging.DEBUG if settings.log_verbose_level else logging.NOTSET)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the settings let `record` be written."""
        settings, level = self.settings, record.levelno
        of_clients = _OF_CLIENTS.get(record.name)
        if of_clients is not None and (not of_clients or record.msg in of_clients):
            return False
        if level >= logging.ERROR:
            return settings.log_error
        if level >= logging.WARNING:
            return settings.log_warning
        return settings.log_info if level >= logging.INFO else settings.log_verbose_level > 0


def start_log(origin: str = "", form: LogFormat = "text") -> None:
    """Let this process log to stderr, unless the program that it runs in has set up logging already.

    Whatever else Python writes to stderr joins the log's lines. In JSON, warnings of Python and errors that end a
    thread or the process are objects too, so that every line that this process writes to stderr is JSON.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    # A process that was started without a stderr has none here either: its descriptor may be another file's.
    stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 it is for as long as the process
    log = ServerLog(stderr, origin, form)
    log.writer.start()
    root.addHandler(log)
    sys.stderr = LogStream(log.writer.put, stderr)
    root.setLevel(logging.INFO)
    if form == "json":
        logging.captureWarnings(capture=True)
        sys.excepthook = lambda kind, error, trace: _log.critical(
            "the process ends by an error", exc_info=(kind, error, trace)
        )
        threading.excepthook = lambda its: _log.critical(
            "a thread ends by an error",
            exc_info=None if its.exc_value is None else (its.exc_type, its.exc_value, its.exc_traceback),
        )


def server_log() -> ServerLog | None:
    """Return the log of this process; None: it belongs to the program that the server runs in."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, ServerLog)), None)


def end_process(code: int) -> NoReturn:
    """End this process at once, with `code`, once what it logged is written: within a second, if that is read."""
    if (log := server_log()) is not None:
        log.flush()
    os._exit(code)


def line_record(level: int, message: str) -> logging.LogRecord:
    """Return the record of a line that is written by another way than by a logger."""
    return logging.LogRecord(__name__, level, __file__, 0, message, None, None)
