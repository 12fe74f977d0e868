"""Notices that a worker or backend process gives no sign of life: it hangs, or was stopped."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from fuseline.serve.workers.supervised import SupervisedProcess

_PING_S = 0.5
"""Seconds between two pings."""

SILENT_SHARE = 0.25
"""Share of the time after which a silent process is ended from which on health says that it computes nothing."""

_LEAST_SILENT_S = 4 * _PING_S
"""Shortest silence that tells anything: pings and answers take their turn behind other work."""

_log = logging.getLogger(__name__)


class ProcessWatch:
    """Pings the processes of a supervisor on its event loop, and ends those that stay silent, to be started again."""

    def __init__(
        self,
        processes: Callable[[], Iterable[SupervisedProcess]],
        backend: Callable[[], SupervisedProcess | None],
        timeout_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """Watch `processes()`, of which `backend()` computes. One that is silent for `timeout_s` is ended.

        `on_change` is called whenever `answers` or `is_live` changes.
        """
        self._processes = processes
        self._backend = backend
        self._timeout_s = timeout_s
        self._silent_after_s = max(SILENT_SHARE * timeout_s, _LEAST_SILENT_S)
        self._hangs_after_s = max(timeout_s, 2 * _LEAST_SILENT_S)
        self._on_change = on_change
        self._awake_since = 0.0
        self.answers = True
        """Whether the backend gives signs of life; False too where it has given none for part of the time."""
        self.is_live = True
        """Whether no process hangs: one that does is ended at once, but may take a moment."""

    async def run(self) -> None:
        """Watch, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._timeout_s:
            now = loop.time()
            if now - due > _PING_S:
                # This process itself was stopped, or starved of CPU; the others may have been, too.
                self._awake_since = now
            self._look(now)
            due = now + _PING_S
            await asyncio.sleep(_PING_S)

    def _look(self, now: float) -> None:
        hanging = []
        for process in self._processes():
            if process.ready is None:
                continue
            process.ping()
            if self._silent_s(process, now) > self._hangs_after_s:
                hanging.append(process)
        backend = self._backend()
        silent_s = 0.0 if backend is None or backend.ready is None else self._silent_s(backend, now)
        state = silent_s <= self._silent_after_s, not hanging
        if state != (self.answers, self.is_live):
            self.answers, self.is_live = state
            self._on_change()
        for process in hanging:
            _log.error(
                "%s (process %d) has given no sign of life for %.1f s and is ended",
                process.title,
                process.pid,
                self._silent_s(process, now),
            )
            process.kill()

    def _silent_s(self, process: SupervisedProcess, now: float) -> float:
        return now - max(process.heard, self._awake_since)
