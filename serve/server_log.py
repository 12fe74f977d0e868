"""The log of a server's processes, on stderr, and its settings, which clients may change while it runs."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field

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
    """Form of the time: that of Python's logging, in local time, or ISO 8601 in UTC."""


class ServerLog(logging.StreamHandler[TextIO]):
    """Writes the log of this process. There is at most one, and it stays until the process ends."""

    def __init__(self, stream: TextIO, origin: str) -> None:
        """Write to `stream`; each line names the `origin` of the process, if it has one."""
        super().__init__(stream)
        self._origin = f" ({origin})" if origin else ""
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
        formatter = logging.Formatter(f"%(asctime)s %(levelname)s %(name)s{self._origin}: %(message)s")
        if settings.log_format == "ISO8601":
            formatter.converter = time.gmtime
            formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
            formatter.default_msec_format = "%s.%03dZ"
        self.setFormatter(formatter)
        logging.getLogger("fuseline").setLevel(logging.DEBUG if settings.log_verbose_level else logging.NOTSET)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the settings let `record` be written."""
        settings, level = self.settings, record.levelno
        if level >= logging.ERROR:
            return settings.log_error
        if level >= logging.WARNING:
            return settings.log_warning
        return settings.log_info if level >= logging.INFO else settings.log_verbose_level > 0


def start_log(origin: str = "") -> None:
    """Let this process log to stderr, unless the program that it runs in has set up logging already."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(ServerLog(sys.stderr, origin))
        root.setLevel(logging.INFO)


def server_log() -> ServerLog | None:
    """Return the log of this process; None: it belongs to the program that the server runs in."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, ServerLog)), None)
