"""Answers of one bidirectional stream on their way to the one task that writes them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


class AnswerQueue(Generic[_Answer]):
    """Answers in the order in which they are `put`, and room for a bounded number of requests. On one event loop.

    An `asyncio.Queue` and a semaphore do as much for three times the CPU; these have one reader and one writer, and a
    writer that finds several answers writes them all before it sleeps again.
    """

    def __init__(self, in_flight: int) -> None:
        """Requests that took room are at most `in_flight` at a time; each gives it back once its answer is written."""
        self._room = in_flight
        self._answers: deque[_Answer] = deque()
        self._ended = False
        self._room_wanted: asyncio.Future[None] | None = None
        self._answer_wanted: asyncio.Future[None] | None = None

    async def take_room(self) -> None:
        """Return once there is room for one more request, which it then takes."""
        while not self._room:
            self._room_wanted = asyncio.get_running_loop().create_future()
            await self._room_wanted
        self._room -= 1

    def put(self, answer: _Answer) -> None:
        """Have `answer` written."""
        self._answers.append(answer)
        _wake(self._answer_wanted)

    def end(self) -> None:
        """Have `write_all` return after the answers that were put."""
        self._ended = True
        _wake(self._answer_wanted)

    async def write_all(self, write: Callable[[_Answer], Awaitable[None]]) -> None:
        """Await `write` of one answer after another, until `end`. Raises what `write` raises."""
        while True:
            while self._answers:
                await write(self._answers.popleft())
                self._room += 1
                _wake(self._room_wanted)
            if self._ended:
                return
            self._answer_wanted = asyncio.get_running_loop().create_future()
            await self._answer_wanted


def _wake(wanted: asyncio.Future[None] | None) -> None:
    if wanted is not None and not wanted.done():
        wanted.set_result(None)
