"""Requests of bidirectional streams begin as they come, several at a time, and are finished in the same order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from serve.settings import Settings

_USUAL_IN_FLIGHT = 64

_Request = TypeVar("_Request")
_Begun = TypeVar("_Begun")


def in_flight_per_stream(settings: Settings) -> int:
    """Enough for two full batches, but no more than the queue takes from a stream of single images."""
    return min(max(_USUAL_IN_FLIGHT, 2 * (settings.max_batch or 0)), settings.max_queue_rows)


class OrderedStreams:
    """The streams of one service. All of it on one event loop."""

    def __init__(self, in_flight: int) -> None:
        """Of each stream at most `in_flight` requests are begun and not finished; further ones are not read yet."""
        self._in_flight = in_flight
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
    ) -> bool:
        """Call `begin` with each of `requests` as it comes, then `finish` with what that returned, one after another.

        Returns whether the requests ended of themselves: False after `cut_short`. What was begun and can't be finished,
        because this call is cancelled or a `finish` raises, goes to `abandon`. Raises what `requests` raises, after
        everything begun is finished.
        """
        begun: asyncio.Queue[_Begun | None] = asyncio.Queue()
        slots = asyncio.Semaphore(self._in_flight)

        async def read() -> None:
            await slots.acquire()
            async for request in requests:
                begun.put_nowait(begin(request))
                await slots.acquire()

        reader = asyncio.create_task(read())
        # Not in the reader's own `finally`, which a reader cancelled before its first step never enters.
        reader.add_done_callback(lambda _: begun.put_nowait(None))
        self._readers.add(reader)
        try:
            while (item := await begun.get()) is not None:
                await finish(item)
                slots.release()
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
