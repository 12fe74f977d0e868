"""Tells streams when what let them in no longer suffices."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from fuseline.serve.access.gate import Gate, Pass
from fuseline.serve.errors import FuselineError

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the tokens of open streams. The file itself is read at most each second, too."""

_log = logging.getLogger(__name__)

End: TypeAlias = Callable[[FuselineError], None]
"""Called once with the reason, an error of the stream's own; returns at once."""


class Passes:
    """The streams that tokens have opened. Everything happens on one event loop.

    A stream is told within about two seconds that its token was withdrawn, has expired, or lost the role. What that
    costs doesn't grow with the messages or the streams, but with the tokens by which streams are open.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ends: dict[Pass, set[End]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, held: Pass, end: End) -> None:
        """Call `end` when a stream that was let in by `held` is to end, unless it was removed before."""
        self._ends.setdefault(held, set()).add(end)
        if self._timer is None:
            self._look_later()

    def remove(self, held: Pass, end: End) -> None:
        """Forget a stream, also one that was told to end."""
        ends = self._ends.get(held)
        if ends is not None:
            ends.discard(end)
            if not ends:
                del self._ends[held]
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        # First of all, so that no error of a look is the end of looking.
        self._look_later()
        for held in tuple(self._ends):
            error = self._gate.refusal(held)
            if error is None:
                continue
            ends = self._ends.pop(held)
            _log.info("streams of %s that are ended: %d, as %s", held.what, len(ends), error)
            for end in ends:
                self._gate.count("stream_ended")
                end(type(error)(str(error)))
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None
