"""Requests of bidirectional streams begin as they come, several at a time, and are finished in the same order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from fuseline.serve.model import RowBatcher
from fuseline.serve.settings import Settings

_Request = TypeVar("_Request")
_Begun = TypeVar("_Begun")

_USUAL_IN_FLIGHT = 64

_ALWAYS = 2
"""Requests that a stream may have under way although the next batch is full already."""


class StreamPace:
    """How many requests of one stream are taken in before those ahead are answered.

    A stream that isn't held back would fill the queue, and every other caller would wait behind it. One whose requests
    have timeouts of their own isn't held back: its requests are refused as those of separate calls are.
    """

    def __init__(self, settings: Settings) -> None:
        self._usual = min(max(_USUAL_IN_FLIGHT, 2 * (settings.max_batch or 0)), settings.max_queue_rows)
        self._most = settings.max_queue_rows
        self._batcher: RowBatcher | None = None
        self._has_timeouts = False

    def note(self, batcher: RowBatcher | None, *, has_timeout: bool) -> None:
        """What the latest request was for, and whether it had a timeout."""
        self._batcher = batcher
        self._has_timeouts = has_timeout

    def has_room(self, in_flight: int, under_way: int) -> bool:
        """Whether one more is taken in, of `in_flight` of which `under_way` have no answer yet."""
        if self._has_timeouts:
            return in_flight < self._most
        if in_flight >= self._usual:
            return False
        if self._batcher is None or not under_way:
            return True
        crowd = self._batcher.crowd
        return crowd is None or (crowd == "rows" and under_way < _ALWAYS)


class OrderedStreams:
    """The streams of one service. All of it on one event loop."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()

    def cut_short(self) -> None:
        """Read nothing more from any stream; what was begun is finished."""
        for reader in self._readers:
            reader.cancel()

    async def run(
        self,
        requests: AsyncIterator[_Request],
        *,
        begin: Callable[[_Request], _Begun],
        finish: Callable[[_Begun], Awaitable[None]],
        abandon: Callable[[_Begun], None],
        has_room: Callable[[int], bool],
    ) -> bool:
        """Call `begin` with each of `requests` as it comes, then `finish` with what that returned, one after another.

        The next one is read when `has_room` of so many that are begun and not finished; it has to be true of 0.

        Returns whether the requests ended of themselves: False after `cut_short`. What was begun and can't be finished,
        because this call is cancelled or a `finish` raises, goes to `abandon`. Raises what `requests` raises, after
        everything begun is finished.
        """
        begun: asyncio.Queue[_Begun | None] = asyncio.Queue()
        in_flight, finished = 0, asyncio.Event()

        async def room() -> None:
            while not has_room(in_flight):
                finished.clear()
                await finished.wait()

        async def read() -> None:
            nonlocal in_flight
            await room()
            async for request in requests:
                begun.put_nowait(begin(request))
                in_flight += 1
                await room()

        reader = asyncio.create_task(read())
        # Not in the reader's own `finally`, which a reader cancelled before its first step never enters.
        reader.add_done_callback(lambda _: begun.put_nowait(None))
        self._readers.add(reader)
        try:
            while (item := await begun.get()) is not None:
                await finish(item)
                in_flight -= 1
                finished.set()
        finally:
            self._readers.discard(reader)
            reader.cancel()
            while not begun.empty():
                if (left := begun.get_nowait()) is not None:
                    abandon(left)
        if reader.cancelled():
            return False
        reader.result()
        return True
