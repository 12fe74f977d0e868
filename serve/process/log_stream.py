"""Stands in the place of sys.stderr, so that no print, warning or traceback waits for whoever reads it."""

import io
import threading
from collections.abc import Callable
from typing import TextIO

_MOST_CHARACTERS = 65_536
"""Length beyond which a line goes on its way before it has its end."""


class LogStream(io.TextIOBase):
    """A text stream whose lines join those of the log, in their order. It never waits and never fails."""

    def __init__(self, put: Callable[[str], None], stream: TextIO) -> None:
        """Give whole lines to `put`, in the place of `stream`."""
        self._put = put
        self.stream = stream
        """The stream in whose place this stands."""
        self._lock = threading.Lock()
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream in whose place this stands."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What becomes of characters that the encoding lacks."""
        return self.stream.errors

    def fileno(self) -> int:
        """Return the descriptor of the stream in whose place this stands."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Return whether that stream is a terminal."""
        return self.stream.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Take `text`; what has no end of line yet waits for it, or for `flush`."""
        with self._lock:
            whole, newline, self._begun = (self._begun + text).rpartition("\n")
            if newline:
                self._put(whole + newline)
            if len(self._begun) > _MOST_CHARACTERS:
                self._put_begun()
        return len(text)

    def flush(self) -> None:
        """Let what was written go on its way also where its line has no end yet."""
        with self._lock:
            self._put_begun()

    def _put_begun(self) -> None:
        begun, self._begun = self._begun, ""
        if begun:
            self._put(begun)
