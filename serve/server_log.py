"""The log of a server's processes, on stderr, and its settings, which clients may change while it runs."""

import logging
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field

from fuseline.serve.log_lines import JsonLines, TextLines

LogFormat = Literal["text", "json"]

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


class ServerLog(logging.StreamHandler[TextIO]):
    """Writes the log of this process. There is at most one, and it stays until the process ends."""

    def __init__(self, stream: TextIO, origin: str, form: LogFormat = "text") -> None:
        """Write to `stream` in this form; each line names the `origin` of the process, if it has one."""
        super().__init__(stream)
        self._origin = origin
        self.form = form
        """Form of the lines."""
        self.on_change: Callable[[LogSettings], None] | None = None
        """Called with the settings that `change` sets, to tell the server's other processes."""
        self.apply(LogSettings())

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
        if level >= logging.ERROR:
            return settings.log_error
        if level >= logging.WARNING:
            return settings.log_warning
        return settings.log_info if level >= logging.INFO else settings.log_verbose_level > 0


def start_log(origin: str = "", form: LogFormat = "text") -> None:
    """Let this process log to stderr, unless the program that it runs in has set up logging already.

    In JSON, warnings of Python and errors that end a thread or the process go to the log too, so that every line that
    this process writes to stderr is JSON.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    root.addHandler(ServerLog(sys.stderr, origin, form))
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
