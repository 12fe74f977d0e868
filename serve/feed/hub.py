"""Those who watch this process's feed, each at its own pace."""

import asyncio
from collections import deque
from collections.abc import Callable

from fuseline.serve.errors import OverloadedError, ShuttingDownError

MOST_WATCHERS = 16
"""Most watchers of one process. Each costs as much to send to as the first."""

_MOST_WAITING = 100
"""Chunks that wait for a slow watcher, ten seconds of a busy server; the oldest make room."""


class Watcher:
    """Iterates over chunks, JSON each, until it is ended. Everything happens on one event loop."""

    def __init__(self) -> None:
        self.missed = 0
        """Number of chunks that were dropped because they were not taken in time."""
        self.reason = ""
        """Why it was ended; empty before."""
        self._waiting: deque[str] = deque()
        self._news = asyncio.Event()

    def put(self, chunk: str) -> None:
        """Let the watcher have a chunk."""
        if len(self._waiting) == _MOST_WAITING:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(chunk)
        self._news.set()

    def end(self, reason: str) -> None:
        """Return no further chunk. Only the first reason counts."""
        self.reason = self.reason or reason
        self._news.set()

    def __aiter__(self) -> "Watcher":
        return self

    async def __anext__(self) -> str:
        while not self.reason:
            if self._waiting:
                return self._waiting.popleft()
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration


class FeedHub:
    """Passes chunks on to the watchers of one process. Everything happens on one event loop."""

    def __init__(self, on_watched: Callable[[bool], None]) -> None:
        """`on_watched` is called with True when somebody begins to watch, and with False when nobody does any more."""
        self._on_watched = on_watched
        self._watchers: set[Watcher] = set()
        self._closed = ""

    def join(self) -> Watcher:
        """Return a new watcher, for `leave`.

        Raises:
            OverloadedError: there are `MOST_WATCHERS` already.
            ShuttingDownError: `close` was called.
        """
        if self._closed:
            raise ShuttingDownError(self._closed)
        if len(self._watchers) >= MOST_WATCHERS:
            raise OverloadedError(
                f"{MOST_WATCHERS} watch this process already, the most that may; close a page, or try again later", 1.0
            )
        self._watchers.add(watcher := Watcher())
        if len(self._watchers) == 1:
            self._on_watched(True)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Send `watcher` nothing more. Calling it again does nothing."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._on_watched(False)

    def publish(self, chunk: str) -> None:
        """Send `chunk` to every watcher."""
        for watcher in self._watchers:
            watcher.put(chunk)

    def close(self, reason: str) -> None:
        """End every watcher, and let none join any more."""
        self._closed = reason
        for watcher in self._watchers:
            watcher.end(reason)
