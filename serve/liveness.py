"""Whether this process makes progress: its event loop turns, and a backend computes.

Alive and ready are two questions. A server that is not ready is to get no requests for now. One that is not live will
not become ready by itself, and is to be started again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from fuseline.serve.model import RowBatcher

BEAT_S = 0.5
"""Seconds between two heartbeats of the event loop, with each of which the batchers are looked at."""


class Liveness:
    """Watches the running event loop and its batchers from `run` on."""

    def __init__(
        self,
        batchers: Callable[[], Iterable[RowBatcher]],
        timeout_s: float,
        on_change: Callable[[bool], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `batchers()`, and call `on_change` whenever one of them stalls (False) or all compute again (True).

        A loop that doesn't turn for `timeout_s` hangs; 0: however long it takes.
        """
        self._batchers = batchers
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._clock = clock
        self._beat = clock()
        self._stalled = False
        self._lost = False
        self._back = asyncio.Event()
        self._gone = asyncio.Event()
        self.backend_hangs = False
        """Whether the process that computes hangs, where that is another."""

    @property
    def loop_hangs(self) -> bool:
        """Whether the event loop has not turned for `timeout_s`. Any thread may ask."""
        return 0 < self._timeout_s < self._clock() - self._beat

    @property
    def is_live(self) -> bool:
        """Whether progress is made. Any thread may ask."""
        return not (self._lost or self.backend_hangs or self.loop_hangs)

    async def run(self) -> None:
        """Watch, until cancelled."""
        while True:
            self._beat = self._clock()
            await self._look()
            await asyncio.sleep(BEAT_S)

    async def lost_for(self, grace_s: float) -> None:
        """Return once a batcher has been without any lane for `grace_s`."""
        while True:
            await self._gone.wait()
            try:
                async with asyncio.timeout(grace_s):
                    await self._back.wait()
            except TimeoutError:
                return

    async def _look(self) -> None:
        batchers = list(self._batchers())
        self._lost = any(batcher.is_lost for batcher in batchers)
        if self._lost:
            self._back.clear()
            self._gone.set()
        else:
            self._gone.clear()
            self._back.set()
        if (stalled := any(batcher.is_stalled for batcher in batchers)) != self._stalled:
            self._stalled = stalled
            await self._on_change(not stalled)
