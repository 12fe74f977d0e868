"""Decodes pictures in threads, none for longer than it may take.

A thread can't be interrupted within Pillow. A decoder that is fed piece by piece (JPEG, PNG) is stopped at the next
piece. The request for any other picture is refused in time, and the thread goes on; until it ends it counts as one that
is not there, so that no answer is promised on its account.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from fuseline.serve.errors import ImageError

_Content = TypeVar("_Content")
_Row = TypeVar("_Row")

_GRACE = 1.25
"""Times of the timeout after which a picture is given up that its own decoder has not: it then knew better why."""
_LOOKS = 8
"""Looks at the pictures under way in the time that one may take."""


class DecodeThreads:
    """Threads of a pool, and what they work on. Call every method on one event loop."""

    def __init__(
        self, pool: Executor, threads: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._threads = threads
        self._timeout_s = timeout_s
        self._clock = clock
        self._jobs: dict[_Job[object, object], asyncio.Future[tuple[object, float]]] = {}
        self._looking: asyncio.TimerHandle | None = None

    @property
    def threads(self) -> int:
        """Number of threads that are not lost to pictures that were given up, at least 1."""
        return max(1, self._threads - sum(job.is_late and not job.is_done for job in self._jobs))

    async def rows(
        self, work: Callable[[_Content], _Row], contents: Sequence[_Content]
    ) -> list[tuple[_Row, float] | BaseException]:
        """Return, for each of `contents`, what `work` makes of it and the seconds that took, or the error.

        An error is what `work` raises, or `ImageError` once the time is up. All are waited for.
        """
        loop = asyncio.get_running_loop()
        jobs = [_Job(work, content, self._clock) for content in contents]
        futures = [loop.run_in_executor(self._pool, job.run) for job in jobs]
        self._jobs.update(zip(jobs, futures, strict=True))  # type: ignore[arg-type]
        if self._looking is None:
            self._looking = loop.call_later(self._timeout_s / _LOOKS, self._look)
        try:
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        finally:
            for job in jobs:
                if job.is_done or not job.is_late:
                    del self._jobs[job]  # type: ignore[arg-type]
        return [
            ImageError(f"it was not decoded within {self._timeout_s:g} s; send it smaller, or not progressive")
            if job.is_late and isinstance(outcome, asyncio.CancelledError)
            else outcome
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]

    def _look(self) -> None:
        """Give up what takes too long, and forget what was given up and has ended."""
        late_since = self._clock() - _GRACE * self._timeout_s
        for job, future in list(self._jobs.items()):
            if job.is_done and job.is_late:
                del self._jobs[job]
            elif not job.is_done and not job.is_late and job.started is not None and job.started < late_since:
                job.is_late = True
                future.cancel()
        self._looking = (
            asyncio.get_running_loop().call_later(self._timeout_s / _LOOKS, self._look) if self._jobs else None
        )


class _Job(Generic[_Content, _Row]):
    """One picture's decoding, in a thread."""

    __slots__ = ("_clock", "_content", "_work", "is_done", "is_late", "started")

    def __init__(self, work: Callable[[_Content], _Row], content: _Content, clock: Callable[[], float]) -> None:
        self._work = work
        self._content = content
        self._clock = clock
        self.started: float | None = None
        self.is_done = False
        self.is_late = False

    def run(self) -> tuple[_Row, float]:
        self.started = started = self._clock()
        try:
            return self._work(self._content), self._clock() - started
        finally:
            self.is_done = True
