"""How a record of the log is written: as a line for people, or as a JSON object.

A record may bring, by `extra`, `request_id`, `error_id` and `fields`, a mapping of further members for JSON. Nothing of
a request's content is ever among them.
"""

import json
import logging
import os
import re
import time
from datetime import UTC, datetime

_MOST_CHARACTERS = 16_384
"""Length of the longest message or exception that is written whole in JSON: log collectors cut or drop longer lines."""

_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\ud800-\udfff]")
"""Characters by which a name could forge a line or steer a terminal, and those that UTF-8 doesn't have."""


class TextLines(logging.Formatter):
    """A line with time, level, logger, message and, where there is one, the request's id; a traceback follows it."""

    def __init__(self, origin: str, *, is_utc: bool) -> None:
        """Name the `origin` of the process, if it has one; `is_utc` asks for ISO 8601 in UTC instead of local time."""
        named = f" ({origin})" if origin else ""
        super().__init__(f"%(asctime)s %(levelname)s %(name)s{named}: %(message)s")
        if is_utc:
            self.converter = time.gmtime
            self.default_time_format = "%Y-%m-%dT%H:%M:%S"
            self.default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        """Return the line of `record`, in which control characters are escaped."""
        line = escaped(super().formatMessage(record))
        request_id = getattr(record, "request_id", "")
        return f"{line} [request {request_id}]" if request_id else line


class JsonLines(logging.Formatter):
    """A JSON object: time (RFC 3339, UTC, ms), level, logger, message, process, pid, and what the record brings."""

    def __init__(self, origin: str) -> None:
        """Name the process by `origin`; empty: it is the server."""
        super().__init__()
        self._process = origin or "server"

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line of ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        members: dict[str, object] = {
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": shortened(record.getMessage()),
            "process": self._process,
            "pid": os.getpid(),
        }
        for name in ("request_id", "error_id"):
            if value := getattr(record, name, ""):
                members[name] = value
        if record.exc_info:
            members["exception"] = shortened(self.formatException(record.exc_info))
        if record.stack_info:
            members["stack"] = shortened(record.stack_info)
        # What is the log's own comes first, and can't be replaced.
        return json.dumps(members | getattr(record, "fields", {}) | members)


def escaped(text: str) -> str:
    """Return `text` on one line: control characters and lone surrogates as Python writes them."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def shortened(text: str, most_characters: int = _MOST_CHARACTERS) -> str:
    """Return `text` without lone surrogates, which parsers of JSON refuse, and without its middle if it is long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= most_characters:
        return text
    half = most_characters // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"
