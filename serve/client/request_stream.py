"""Requests to one server that travel as messages of one long-lived stream of gRPC, small ones several in a message.

A call of gRPC costs client and server more than the work on a small picture, and a message of a stream costs them
nearly as much. So requests of one kind that wait at the same moment are sent as one request of all their images. What
each gets is what a call of its own would have got: its own deadline, and its own error. For the errors of a message of
several can be that of one of them, they are then sent again, each in a message of its own.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.serve.client.answers import error_from_response
from fuseline.serve.client.calls import error_from_rpc
from fuseline.serve.errors import DeadlineError, FuselineError, ShuttingDownError

LARGEST_BYTES = 256 * 1024
"""Largest request that goes by a stream, where it holds up those behind it; a larger one is a call of its own."""
MOST_IMAGES = 16
"""Most images of a message of several requests."""
MOST_BYTES = 256 * 1024
"""Largest message of several requests."""
RENEW_EVERY_S = 30.0
"""Seconds after which a stream takes no further requests and the next one is opened: else a server that ends old
connections (`--max-connection-age-s`) would have to cut it, and one that is added behind a proxy would get nothing."""

_METHOD = "/fuseline.v1.Classifier/ClassifyStream"
_UNARY_METHOD = "/fuseline.v1.Classifier/Classify"
_MOST_MS = 2**32 - 1
_TOLD_TO_EACH = {grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
"""Status codes that say nothing about one of several requests; sent alone, each would most likely get the same."""
_BROKEN_WRITE = "Internal error from Core"
"""What grpc.aio says, under the status INTERNAL, of a write to a stream that has just ended."""


class RequestStream:
    """The stream to one server, renewed as it ends. It belongs to one event loop."""

    def __init__(self, address: str, channel: grpc.aio.Channel, metadata: Any) -> None:
        self._address = address
        self._open: Any = channel.stream_stream(_METHOD, response_deserializer=ClassifyResponse.FromString)
        self._call: Any = channel.unary_unary(
            _UNARY_METHOD, ClassifyRequest.SerializeToString, ClassifyResponse.FromString
        )
        self._metadata = metadata
        self._current: _OpenStream | None = None
        self._streams: set[_OpenStream] = set()

    async def classify(
        self, request: ClassifyRequest, left_s: float | None, timeout_s: float | None
    ) -> ClassifyResponse:
        """Return the response to one request within `left_s` of its `timeout_s` seconds; `id` and `timeout_ms` are set.

        A request that is cancelled before it was sent is not sent; the answer to a later one is dropped.

        Raises:
            FuselineError: what the server answered, or what the stream broke by; `is_untaken` where it wasn't sent.
            grpc.RpcError: the same of a call, by which a request is sent whose stream broke for a reason not known.
        """
        loop = asyncio.get_running_loop()
        deadline = None if left_s is None else loop.time() + left_s
        answer = await self._open_stream().answer(request, deadline)
        if isinstance(answer, _End) and answer.is_vague:
            # Whether the server drains, is gone or well, a call finds out; another stream might end as vaguely.
            left_s = None if deadline is None else deadline - loop.time()
            response: ClassifyResponse = await self._call(request, timeout=left_s, metadata=self._metadata)
            return response
        if isinstance(answer, ClassifyResponse):
            if answer.HasField("error"):
                raise error_from_response(answer)
            return answer
        if answer is None:
            error = DeadlineError(f"no answer from {self._address} within {timeout_s:g} s; allow more time")
            error.is_unanswered = True
            raise error
        raise self._broken(answer)

    async def close(self) -> None:
        """End the stream; requests under way end with `asyncio.CancelledError`."""
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(stream.reader for stream in streams), return_exceptions=True)

    def _open_stream(self) -> "_OpenStream":
        if self._current is None or not self._current.is_open:
            self._current = stream = _OpenStream(self._open(metadata=self._metadata))
            self._streams.add(stream)
            stream.reader.add_done_callback(partial(self._forget, stream))
        return self._current

    def _forget(self, stream: "_OpenStream", _: object) -> None:
        self._streams.discard(stream)

    def _broken(self, end: "_End") -> FuselineError:
        """Return the error of a request whose stream ended before its answer came."""
        error: FuselineError
        if end.error is None:
            error = ShuttingDownError(f"{self._address} ended the stream before it took the request")
            error.is_untaken = error.may_pass = True
            return error
        error = error_from_rpc(end.error, self._address, None, None)
        error.__cause__ = end.error
        error.is_untaken = error.is_untaken or not end.was_sent
        return error


@dataclass(eq=False, slots=True)
class _End:
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
class _Request:
    """A request and, in `answer`, what becomes of it: a response, the stream's end, or None when its time is over."""

    message: bytes
    images: int
    kind: tuple[object, ...]
    """All but its images; those of one kind can be sent together."""
    deadline: float | None
    answer: "asyncio.Future[ClassifyResponse | _End | None]"
    is_alone: bool
    """Whether it must not be sent together with others."""
    is_sent: bool = False

    @classmethod
    def of(cls, request: ClassifyRequest, deadline: float | None, loop: asyncio.AbstractEventLoop) -> "_Request":
        top_k = request.top_k if request.HasField("top_k") else None
        kind = (request.model, request.model_version, top_k, request.return_logits, request.priority)
        images = len(request.images)
        # One without images would not be missed among others; alone it gets its error.
        return cls(request.SerializeToString(), images, kind, deadline, loop.create_future(), is_alone=not images)

    def goes_with(self, other: "_Request", now: float) -> bool:
        """Return whether the two can be sent together: they are of one kind, and in no very different hurry."""
        if self.is_alone or other.is_alone or self.kind != other.kind:
            return False
        if self.deadline is None or other.deadline is None:
            return self.deadline is other.deadline
        shorter_s, longer_s = sorted((self.deadline - now, other.deadline - now))
        return longer_s <= 2 * shorter_s


class _OpenStream:
    """One stream, its requests that wait to be sent, and those of each message that has no answer."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._ids = count()
        self._unsent: deque[_Request] = deque()
        self._sent: dict[str, list[_Request]] = {}
        self._wanted: asyncio.Future[None] | None = None
        self.is_open = True
        """Whether it takes further requests."""
        self._writer = asyncio.create_task(self._write())
        self.reader = asyncio.create_task(self._read())
        self._renewal = self._loop.call_later(RENEW_EVERY_S, self._end)

    async def answer(self, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse | _End | None:
        """Return the response to a request, what ended the stream before, or None at the deadline."""
        its = _Request.of(request, deadline, self._loop)
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

    def _all(self) -> list[_Request]:
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

    def _next(self) -> list[_Request]:
        """Take the requests of the next message."""
        taken: list[_Request] = []
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

    def _tail(self, id: str, requests: list[_Request]) -> bytes:
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
                _set(request.answer, _End(error, request.is_sent))

    def _settle(self, response: ClassifyResponse) -> None:
        requests = self._sent.pop(response.id, [])
        if len(requests) == 1:
            _set(requests[0].answer, response)
        elif response.HasField("error") and response.error.code not in _TOLD_TO_EACH:
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
