"""The engine of a bidirectional stream: reads requests while there is room, answers them at once or in their order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from fuseline.serve.batching.batcher import BatchedRows
from fuseline.serve.services.inference import AnswerT, Inference, RequestT
from fuseline.serve.services.statuses import Status
from fuseline.serve.services.stream_pace import StreamPace

MessageT = TypeVar("MessageT")


class Stream(Generic[RequestT, AnswerT, MessageT]):
    """The requests of one stream, and their answers on the way to the one task that writes them.

    A request is under way until its turn comes to be answered: as soon as its answer is there, or, `in_order`, once the
    answers to all before it were written too. It is counted then, and in flight until its answer is written. Everything
    happens on one event loop.
    """

    # An asyncio.Queue and a semaphore do the same for three times the CPU. Here there are one reader and one writer,
    # and a writer that finds several answers writes them all before it sleeps again.

    def __init__(
        self,
        begin: Callable[[RequestT], Inference[RequestT, AnswerT]],
        message: Callable[[RequestT, AnswerT | Status], MessageT],
        pace: StreamPace,
        *,
        in_order: bool,
    ) -> None:
        """`message` returns what is written as the answer to a request."""
        self._begin = begin
        self._message = message
        self._pace = pace
        self._in_order = in_order
        # Requests in order of arrival. For raw pixels the value is the batcher's future itself, which costs no task,
        # else a task; None if the request was refused.
        self._under_way: dict[Inference[RequestT, AnswerT], asyncio.Future[BatchedRows] | None] = {}
        self._messages: deque[MessageT] = deque()
        self._being_written = 0
        self._reader: asyncio.Task[None] | None = None
        self._room_wanted: asyncio.Future[None] | None = None
        self._message_wanted: asyncio.Future[None] | None = None

    async def run(self, requests: AsyncIterator[RequestT], write: Callable[[MessageT], Awaitable[None]]) -> bool:
        """Answer `requests`; return True once the client has ended them, False after `cut_short`.

        Raises what `requests` raises, once every request before that is answered, and what `write` raises. Requests are
        abandoned when this call is cancelled or `write` raises.
        """
        self._reader = reader = asyncio.create_task(self._read(requests))
        # The reader's own `finally` wouldn't do: a reader that is cancelled before its first step never enters it.
        reader.add_done_callback(lambda _: _wake(self._message_wanted))
        try:
            while True:
                if (message := self._next_message()) is not None:
                    self._being_written = 1
                    await write(message)
                    self._being_written = 0
                    _wake(self._room_wanted)
                elif reader.done() and not self._under_way:
                    break
                else:
                    self._message_wanted = asyncio.get_running_loop().create_future()
                    await self._message_wanted
        finally:
            reader.cancel()
            while self._under_way:
                inference, pending = self._under_way.popitem()
                if pending is not None:
                    pending.cancel()
                inference.abandon()
        if reader.cancelled():
            return False
        reader.result()
        return True

    def cut_short(self) -> None:
        """Read no further requests; those that were read are answered."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[RequestT]) -> None:
        async for request in requests:
            inference = self._begin(request)
            pending: asyncio.Future[BatchedRows] | None = None
            with inference:
                submitted = inference.submit()
                pending = submitted if isinstance(submitted, asyncio.Future) else asyncio.create_task(submitted)
                pending.add_done_callback(partial(self._settle, inference))
            self._under_way[inference] = pending
            if pending is None:
                self._answered(inference)
            model = inference.model
            self._pace.note(None if model is None else model.batcher, has_timeout=inference.has_timeout)
            while not self._has_room():
                self._room_wanted = asyncio.get_running_loop().create_future()
                await self._room_wanted

    def _has_room(self) -> bool:
        under_way = len(self._under_way)
        return self._pace.has_room(under_way + len(self._messages) + self._being_written, under_way)

    def _settle(self, inference: Inference[RequestT, AnswerT], pending: asyncio.Future[BatchedRows]) -> None:
        """Make the answer to a request whose `pending` result is done."""
        is_wanted = inference in self._under_way
        if pending.cancelled():
            if is_wanted:
                # The stream itself has not cancelled it: a server whose drain took too long ends the decoding threads.
                del self._under_way[inference]
                inference.abandon()
                _wake(self._room_wanted)
                _wake(self._message_wanted)
            return
        # Raising the error here would tie it, this frame and the request together until a garbage collection.
        if (error := pending.exception()) is not None:
            inference.fail(error)
        else:
            with inference:
                inference.settle(pending.result())
        if is_wanted:
            self._answered(inference)

    def _answered(self, inference: Inference[RequestT, AnswerT]) -> None:
        if not self._in_order:
            self._messages.append(self._take(inference))
            _wake(self._room_wanted)
        _wake(self._message_wanted)

    def _next_message(self) -> MessageT | None:
        """Return the message to write next; None if it isn't there yet."""
        if not self._in_order:
            return self._messages.popleft() if self._messages else None
        oldest = next(iter(self._under_way), None)
        return None if oldest is None or oldest.answer is None else self._take(oldest)

    def _take(self, inference: Inference[RequestT, AnswerT]) -> MessageT:
        """Count a request whose turn has come, and return the message that answers it."""
        del self._under_way[inference]
        inference.count()
        assert inference.answer is not None
        return self._message(inference.request, inference.answer)


def _wake(wanted: asyncio.Future[None] | None) -> None:
    if wanted is not None and not wanted.done():
        wanted.set_result(None)
