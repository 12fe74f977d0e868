"""Answers of one bidirectional stream on their way to the one task that writes them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


class AnswerQueue(Generic[_Answer]):
    """Answers in the order in which they are `put`, and room for the requests in flight. On one event loop.

    An `asyncio.Queue` and a semaphore do as much for three times the CPU; these have one reader and one writer, and a
    writer that finds several answers writes them all before it sleeps again.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._answers: deque[_Answer] = deque()
        self._ended = False
        self._room_wanted: asyncio.Future[None] | None = None
        self._answer_wanted: asyncio.Future[None] | None = None

    async def take_room(self, has_room: Callable[[int], bool]) -> None:
        """Return once `has_room` of so many requests in flight, among which the next one is from then on.

        A request is in flight until its answer is written. `has_room` is asked again whenever one is answered or
        written, and has to be true of 0.
        """
        while not has_room(self._in_flight):
            self._room_wanted = asyncio.get_running_loop().create_future()
            await self._room_wanted
        self._in_flight += 1

    def put(self, answer: _Answer) -> None:
        """Have `answer` written."""
        self._answers.append(answer)
        _wake(self._answer_wanted)
        _wake(self._room_wanted)

    def end(self) -> None:
        """Have `write_all` return after the answers that were put."""
        self._ended = True
        _wake(self._answer_wanted)

    async def write_all(self, write: Callable[[_Answer], Awaitable[None]]) -> None:
        """Await `write` of one answer after another, until `end`. Raises what `write` raises."""
        while True:
            while self._answers:
                await write(self._answers.popleft())
                self._in_flight -= 1
                _wake(self._room_wanted)
            if self._ended:
                return
            self._answer_wanted = asyncio.get_running_loop().create_future()
            await self._answer_wanted


def _wake(wanted: asyncio.Future[None] | None) -> None:
    if wanted is not None and not wanted.done():
        wanted.set_result(None)
