"""Ends a replica that makes no progress, from a thread that nothing of it can hold.

Ray replaces a replica whose health check fails, but lets it finish what it has first, for as long as a drain may take:
so long the requests in a hanging one would wait. A process that has ended fails them at once, and is replaced at once.
"""

import threading
import time
from collections.abc import Callable

GRACE_S = 5.0
"""Seconds for which there must be no progress: a call that hangs may yet return."""

_LOOK_S = 0.5


class Watchdog:
    """Watches in a thread of its own, from `start` until `stop`."""

    def __init__(
        self,
        is_live: Callable[[], bool],
        end: Callable[[], None],
        *,
        grace_s: float = GRACE_S,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call `end` once `is_live` has been false for `grace_s`, looked at each `look_s`."""
        self._is_live = is_live
        self._end = end
        self._grace_s = grace_s
        self._look_s = look_s
        self._clock = clock
        self._since: float | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._watch, name="fuseline-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def look(self) -> bool:
        """Return whether there has been no progress for too long."""
        if self._is_live():
            self._since = None
            return False
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since >= self._grace_s

    def _watch(self) -> None:
        while not self._stopped.wait(self._look_s):
            if self.look():
                self._end()
                return
