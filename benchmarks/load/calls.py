"""How one request gets to the server and its answer back, as bytes: by a call of its own, or through streams."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import DecodeError

CLASSIFY = "/fuseline.v1.Classifier/Classify"
CLASSIFY_STREAM = "/fuseline.v1.Classifier/ClassifyStream"

Call = Callable[[bytes], Awaitable[bytes]]

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A proxy has no part in what is measured.
    ("grpc.enable_http_proxy", 0),
)
_ENDED = "STREAM_ENDED"
_UNREADABLE = "UNREADABLE_ANSWER"


class CallError(Exception):
    """A request that was refused or got lost."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status
        """Name of its gRPC status. Or `STREAM_ENDED`, where a stream ended well but without this answer, or
        `UNREADABLE_ANSWER`, where a stream brought one that belongs to no request."""


@asynccontextmanager
async def open_calls(
    address: str, method: str, *, streams: int = 0, timeout_s: float | None = None
) -> AsyncIterator[Call]:
    """Yield what sends one serialised request to `method` and returns the serialised answer; any number at a time.

    Args:
        address: HOST:PORT; one connection is made.
        method: its path, such as `CLASSIFY`.
        streams: 0: a call for each request. Else so many bidirectional streams, which take turns; a stream that has
            ended is opened again by the next request. Answers of `CLASSIFY_STREAM` find their request by its id;
            every other stream is taken to answer in order.
        timeout_s: the deadline that is sent with each call; streams have none.

    What is yielded raises `CallError`.
    """
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        # No serialisers: bytes go out and come back as they are.
        if not streams:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)

            async def call(request: bytes) -> bytes:
                try:
                    answer: bytes = await unary(request, timeout=timeout_s)
                except grpc.aio.AioRpcError as error:
                    raise CallError(error.code().name) from error
                return answer

            yield call
            return
        opened = [_Stream(channel.stream_stream(method), by_id=method == CLASSIFY_STREAM) for _ in range(streams)]
        turns = itertools.cycle(opened)
        try:
            yield lambda request: next(turns).ask(request)
        finally:
            for stream in opened:
                stream.close()


class _Stream:
    """One bidirectional stream with any number of requests under way."""

    def __init__(self, method: "grpc.aio.StreamStreamMultiCallable[bytes, bytes]", *, by_id: bool) -> None:
        self._method = method
        self._by_id = by_id
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        """Requests that wait for an answer, in the order of sending."""
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, request: bytes) -> bytes:
        """The answer to `request`. Raises `CallError`."""
        if not self._tasks:
            self._open()
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._outgoing.put_nowait(request + _id_field(number) if self._by_id else request)
        return await future

    def close(self) -> None:
        """Cancel the stream and what is under way."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    def _open(self) -> None:
        self._outgoing = asyncio.Queue()
        stream = self._method()
        self._tasks = [asyncio.create_task(self._write(stream)), asyncio.create_task(self._read(stream))]

    async def _write(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        try:
            while True:
                await stream.write(await self._outgoing.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended; the reader knows why.
            return

    async def _read(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        status = _ENDED
        try:
            while isinstance(answer := await stream.read(), bytes):
                self._settle(answer)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        except (DecodeError, LookupError, ValueError):
            status = _UNREADABLE
            stream.cancel()
        else:
            code = await stream.code()
            status = _ENDED if code is grpc.StatusCode.OK else code.name
        self._tasks[0].cancel()
        self._tasks = []
        lost, self._waiting = self._waiting, {}
        for future in lost.values():
            if not future.done():
                future.set_exception(CallError(status))

    def _settle(self, answer: bytes) -> None:
        error = None
        if self._by_id:
            number, error = _id_and_error(answer)
        else:
            number = next(iter(self._waiting), 0)
        future = self._waiting.pop(number)
        if future.done():
            return
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)


def _id_field(number: int) -> bytes:
    """`ClassifyRequest.id` in the wire format: appended to a serialised message it is set, the last one counts.

    https://protobuf.dev/programming-guides/encoding/#last-one-wins; field 4, length-delimited.
    """
    text = b"%d" % number
    return b"\x22%c%b" % (len(text), text)


def _id_and_error(answer: bytes) -> tuple[int, CallError | None]:
    from fuseline.protos.classify_pb2 import ClassifyResponse

    response = ClassifyResponse.FromString(answer)
    if not response.HasField("error"):
        return int(response.id), None
    code = next((code for code in grpc.StatusCode if code.value[0] == response.error.code), grpc.StatusCode.UNKNOWN)
    return int(response.id), CallError(code.name)
