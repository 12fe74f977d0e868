"""One stream of gRPC that carries requests to a server, small ones of one kind several in a message."""

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse

MOST_IMAGES = 16
"""Most images of a message of several requests."""
MOST_BYTES = 256 * 1024
"""Largest message of several requests."""
RENEW_EVERY_S = 30.0
"""Seconds after which a stream takes no further requests and the next one is opened: else a server that ends old
connections (`--max-connection-age-s`) would have to cut it, and one that is added behind a proxy would get nothing."""

_MOST_MS = 2**32 - 1
_TOLD_TO_EACH = grpc.StatusCode.UNAVAILABLE.value[0]
"""Status code of a message that says nothing about one of its requests. For others there may be room alone, or time."""
_BROKEN_WRITE = "Internal error from Core"
"""What grpc.aio says, under the status INTERNAL, of a write to a stream that has just ended."""


@dataclass(eq=False, slots=True)
class StreamEnd:
    """What a request gets instead of a response when its stream ends."""

    error: Any
    """grpc.aio's; None: the server ended the stream as if all were answered."""
    was_sent: bool

    @property
    def is_vague(self) -> bool:
        """Whether grpc.aio doesn't tell why: of a write that fails it makes a status of its own, and drops what came.

        The server's own status, as that it drains, and its last answers are lost by that.
        """
        return (
            self.error is not None
            and self.error.code() is grpc.StatusCode.INTERNAL
            and self.error.details() == _BROKEN_WRITE
        )


@dataclass(eq=False, slots=True)
class StreamedRequest:
    """A request and, in `answer`, what becomes of it: a response, the stream's end, or None when its time is over."""

    message: bytes
    images: int
    kind: tuple[object, ...]
    """All but its images; those of one kind can be sent together."""
    deadline: float | None
    answer: "asyncio.Future[ClassifyResponse | StreamEnd | None]"
    is_alone: bool
    """Whether it must not be sent together with others."""
    is_sent: bool = False

    @classmethod
    def of(cls, request: ClassifyRequest, deadline: float | None, loop: asyncio.AbstractEventLoop) -> "StreamedRequest":
        """Return what is sent for `request`, which has until `deadline` on the clock of `loop`."""
        top_k = request.top_k if request.HasField("top_k") else None
        kind = (request.model, request.model_version, top_k, request.return_logits, request.priority)
        images = len(request.images)
        # One without images would not be missed among others; alone it gets its error.
        return cls(request.SerializeToString(), images, kind, deadline, loop.create_future(), is_alone=not images)

    def goes_with(self, other: "StreamedRequest", now: float) -> bool:
        """Return whether the two can be sent together: they are of one kind, and in no very different hurry."""
        if self.is_alone or other.is_alone or self.kind != other.kind:
            return False
        if self.deadline is None or other.deadline is None:
            return self.deadline is other.deadline
        shorter_s, longer_s = sorted((self.deadline - now, other.deadline - now))
        return longer_s <= 2 * shorter_s


class OpenStream:
    """One stream, its requests that wait to be sent, and those of each message that has no answer."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._ids = count()
        self._unsent: deque[StreamedRequest] = deque()
        self._sent: dict[str, list[StreamedRequest]] = {}
        self._wanted: asyncio.Future[None] | None = None
        self.is_open = True
        """Whether it takes further requests."""
        self._writer = asyncio.create_task(self._write())
        self.reader = asyncio.create_task(self._read())
        self._renewal = self._loop.call_later(RENEW_EVERY_S, self._end)

    async def answer(self, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse | StreamEnd | None:
        """Return the response to a request, what ended the stream before, or None at the deadline."""
        its = StreamedRequest.of(request, deadline, self._loop)
        self._unsent.append(its)
        self._wake()
        timer = None if deadline is None else self._loop.call_at(deadline, _set, its.answer, None)
        try:
            return await its.answer
        finally:
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        """End at once; what waits is cancelled."""
        self.is_open = False
        for request in self._all():
            request.answer.cancel()
        self._call.cancel()

    def _all(self) -> list[StreamedRequest]:
        return [*self._unsent, *(request for requests in self._sent.values() for request in requests)]

    async def _write(self) -> None:
        while True:
            while requests := self._next():
                id = str(next(self._ids))
                self._sent[id] = requests
                for request in requests:
                    request.is_sent = True
                # Bytes of messages one after the other are one message: repeated fields are joined, of others the last
                # one counts (Protocol Buffers, Encoding).
                await self._call.write(b"".join([*(its.message for its in requests), self._tail(id, requests)]))
            if not self.is_open and not self._sent:
                await self._call.done_writing()
                return
            self._wanted = self._loop.create_future()
            await self._wanted

    def _next(self) -> list[StreamedRequest]:
        """Take the requests of the next message."""
        taken: list[StreamedRequest] = []
        images = size = 0
        while self._unsent:
            request = self._unsent[0]
            if request.answer.done():
                self._unsent.popleft()
                continue
            images += request.images
            size += len(request.message)
            if taken and (
                images > MOST_IMAGES or size > MOST_BYTES or not request.goes_with(taken[0], self._loop.time())
            ):
                break
            taken.append(self._unsent.popleft())
        return taken

    def _tail(self, id: str, requests: list[StreamedRequest]) -> bytes:
        """Return the bytes of the fields that a message has besides its requests'."""
        tail = ClassifyRequest(id=id)
        # Of several the first one to be late: that the server can't meet it is an error by which they are sent alone.
        deadlines = [request.deadline for request in requests if request.deadline is not None]
        if deadlines:
            tail.timeout_ms = min(max(1, int((min(deadlines) - self._loop.time()) * 1000)), _MOST_MS)
        return tail.SerializeToString()

    async def _read(self) -> None:
        error: grpc.RpcError | None = None
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._settle(response)
        except grpc.RpcError as its:
            error = its
        finally:
            self.is_open = False
            self._renewal.cancel()
            self._writer.cancel()
            # The writer fails by what ended the stream, if it didn't wait.
            await asyncio.gather(self._writer, return_exceptions=True)
            for request in self._all():
                _set(request.answer, StreamEnd(error, request.is_sent))

    def _settle(self, response: ClassifyResponse) -> None:
        requests = self._sent.pop(response.id, [])
        if len(requests) == 1:
            _set(requests[0].answer, response)
        elif response.HasField("error") and response.error.code != _TOLD_TO_EACH:
            for request in requests:
                request.is_alone, request.is_sent = True, False
            self._unsent.extend(requests)
            self._wake()
        else:
            begin = 0
            for request in requests:
                end = begin + request.images
                if not request.answer.done():
                    _set(request.answer, _part_of(response, begin, end))
                begin = end
        if not self.is_open:
            self._wake()

    def _end(self) -> None:
        """Take no further requests; those that it has are answered."""
        self.is_open = False
        self._wake()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)


def _part_of(response: ClassifyResponse, begin: int, end: int) -> ClassifyResponse:
    """Return the response to the request whose images were those from `begin` to below `end` of a message."""
    if response.HasField("error"):
        return response
    return ClassifyResponse(
        model=response.model,
        model_version=response.model_version,
        results=response.results[begin:end],
        timing=response.timing,
        served_model=response.served_model,
    )


def _set(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)
