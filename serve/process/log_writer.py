"""Writes a process's log in a thread of its own: whoever logs never waits for whoever reads the log.

A pipe that nobody reads holds 64 KiB, and a write beyond that waits for ever. Here it is this thread that waits, and
lines queue up, to a bound beyond which they are dropped and counted.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TextIO

from fuseline.serve.process.log_lines import shortened

_MOST_BYTES = 2**20
"""Bytes that may wait to be written."""

_LINE_BYTES = 100
"""Bytes that a line takes beside its text, so that very short ones are bounded too."""

_LONGEST_CHARACTERS = 65_536
"""Length of the longest text that is written whole: a few of them don't fill the queue."""

_PIECE_BYTES = 4096
"""Bytes up to which lines are written together: so many reach a pipe undivided (PIPE_BUF), whoever writes to it too."""


class LogWriter:
    """A bounded queue of lines, and the thread that writes them in their order. Any thread may call every method."""

    def __init__(
        self,
        write: Callable[[bytes], int],
        notice: Callable[[int], str],
        *,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """Write by `write`, which returns how many bytes it wrote: fewer than it was given if it can't write.

        `notice` returns the line that says how many lines are missing in its place.
        """
        self._write = write
        self._notice = notice
        self._encoding = encoding
        self._errors = errors
        self._most_bytes = most_bytes
        self.dropped = 0
        """Lines that were not written: there was no room for them, or the stream took none."""
        self._thread: threading.Thread | None = None
        self._begin()

    def start(self) -> None:
        """Start the thread, unless it runs; else the first line does."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fuseline-log", daemon=True)
                self._thread.start()

    def put(self, text: str) -> None:
        """Have `text`, whole lines, written after what was put before, or drop it where there is no room.

        Returns at once. The middle of a text beyond 65,536 characters is left out.
        """
        if len(text) > _LONGEST_CHARACTERS:
            text = shortened(text, _LONGEST_CHARACTERS)
        line = text.encode(self._encoding, self._errors)
        if self._process != os.getpid():
            self._begin()
        if self._thread is None:
            self.start()
        with self._changed:
            # Once a line is missing, so are those after it until the queue is empty and the gap is told: else the log
            # would be in shreds, with a word about each.
            if self._gap or self._bytes + len(line) + _LINE_BYTES > self._most_bytes:
                self._gap += 1
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line) + _LINE_BYTES
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Return whether everything that was put is written, or was dropped, within `timeout_s`."""
        if self._process != os.getpid():
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not (self._lines or self._gap or self._is_writing), timeout_s)

    def _begin(self) -> None:
        """Begin without a line. A process that was forked does too: its parent writes what was put before."""
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._gap = 0
        """Lines that were dropped after the last one of the queue."""
        self._lost = 0
        """Lines that are missing before the first one of the queue, which the stream is yet to be told."""
        self._is_torn = False
        """Whether the stream ends within a line."""
        self._is_writing = False
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._gap)
                if not self._lines:
                    self._lost += self._gap
                    self._gap = 0
                lines = self._take()
                self._is_writing = True
            self._write_lines(lines)

    def _take(self) -> list[bytes]:
        """Take the lines that are written together: one, or as many as reach a pipe undivided."""
        lines: list[bytes] = []
        size = 0
        while self._lines and (not lines or size + len(self._lines[0]) <= _PIECE_BYTES):
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        self._bytes -= size + _LINE_BYTES * len(lines)
        return lines

    def _write_lines(self, lines: list[bytes]) -> None:
        if self._lost and self._written([self._notice(self._lost).encode(self._encoding, self._errors)]):
            self._lost = 0
        unwritten = len(lines) - self._written(lines)
        self._lost += unwritten
        with self._changed:
            self.dropped += unwritten

    def _written(self, lines: list[bytes]) -> int:
        """Write `lines`; return how many of them were written whole."""
        if not lines:
            return 0
        mend = b"\n" if self._is_torn else b""
        data = mend + b"".join(lines)
        written = self._write(data)
        if written:
            self._is_torn = written < len(data) and data[written - 1 : written] != b"\n"
        left, whole = written - len(mend), 0
        for line in lines:
            left -= len(line)
            whole += left >= 0
        return whole


def writer_of(stream: TextIO) -> Callable[[bytes], int]:
    """Return what a `LogWriter` writes to `stream` by. Its descriptor is used where it has one: a thread that waits in
    the stream itself would hold its lock, for which the interpreter's end waits.
    """
    try:
        descriptor = stream.fileno()
    except OSError:
        return partial(_write_to_stream, stream)
    return partial(write_whole, descriptor)


def write_whole(descriptor: int, data: bytes) -> int:
    """Write `data`, however long that takes; return how many bytes were written, fewer where the rest can't be."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, data[written:])
        except BlockingIOError:
            # Whoever shares the descriptor has it not wait.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError:
            break
    return written


def _write_to_stream(stream: TextIO, data: bytes) -> int:
    try:
        stream.write(data.decode(errors="backslashreplace"))
        stream.flush()
    except (OSError, ValueError):
        return 0
    return len(data)
