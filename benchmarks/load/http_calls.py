"""How a request gets to an HTTP/1.1 server and its answer back, as bytes: the counterpart of
`fuseline.benchmarks.load.calls`.

Only what a load generator needs of RFC 9112: POST over connections that stay open, one request under way on each,
answers with a Content-Length. It spends about as little as Python can.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from fuseline.benchmarks.load.calls import Call, CallError

CONNECTION_LOST = "CONNECTION_LOST"
"""No connection could be made, or it ended before the answer did."""
UNREADABLE = "UNREADABLE_ANSWER"
TIMED_OUT = "DEADLINE_EXCEEDED"
_HEAD_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 65536


@asynccontextmanager
async def open_http_calls(
    address: str,
    path: str,
    *,
    streams: int = 0,
    timeout_s: float | None = None,
    fields: Sequence[tuple[str, str]] = (),
) -> AsyncIterator[Call]:
    """Yield what posts one body to `path` and returns the body of the answer; any number at a time.

    Args:
        address: HOST:PORT; there are as many connections as requests were ever under way at once.
        path: such as `/model`.
        streams: 0, as HTTP/1.1 has none; `fuseline.benchmarks.load.calls.open_calls` takes the same arguments.
        timeout_s: after which a request is given up, and its connection closed.
        fields: (name, value) of what each request's head has besides.

    What is yielded raises `CallError`: `HTTP_` and the status where that isn't 200, `CONNECTION_LOST`,
    `UNREADABLE_ANSWER` or `DEADLINE_EXCEEDED`.
    """
    if streams:
        raise ValueError(f"HTTP/1.1 has no streams, got {streams}")
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    idle: list[_Connection] = []
    opened: set[_Connection] = set()
    besides = "".join(f"{name}: {value}\r\n" for name, value in fields)

    async def connection() -> _Connection:
        while idle:
            if (known := idle.pop()).is_open:
                return known
        try:
            _, fresh = await loop.create_connection(_Connection, host, int(port))
        except OSError as error:
            raise CallError(CONNECTION_LOST) from error
        opened.add(fresh)
        return fresh

    async def call(request: bytes) -> bytes:
        used = await connection()
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(request)}\r\n{besides}\r\n"
        try:
            async with asyncio.timeout(timeout_s):
                answer = await used.ask(head.encode("ascii"), request)
        except TimeoutError as error:
            raise CallError(TIMED_OUT) from error
        finally:
            # One that has no answer yet can't be used again: the next request would get this one's.
            if used.is_idle:
                idle.append(used)
            else:
                used.close()
                opened.discard(used)
        return answer

    try:
        yield call
    finally:
        for each in opened:
            each.close()


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._received = bytearray()
        self._body_starts = 0
        self._ends = 0
        """0 until the head has come; then the length of the whole answer."""
        self._status = b""
        self._stays_open = True

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """Open, and every request has its answer."""
        return self.is_open and (self._answer is None or (self._answer.done() and not self._answer.cancelled()))

    def ask(self, head: bytes, body: bytes) -> "asyncio.Future[bytes]":
        """Send a request; the future raises `CallError`."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._settle(CallError(CONNECTION_LOST))
        else:
            self._transport.writelines((head, body))
        return self._answer

    def close(self) -> None:
        """Close it; whoever waits for an answer gets `CONNECTION_LOST`."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's has the methods, but isn't one by its class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            if not self._ends and not self._read_head():
                return
        except ValueError:
            self._settle(CallError(UNREADABLE))
            self.close()
            return
        if len(self._received) < self._ends:
            return
        # Bytes beyond the answer belong to no request.
        is_exact = len(self._received) == self._ends
        body = bytes(memoryview(self._received)[self._body_starts : self._ends])
        status = self._status.decode("ascii", "replace")
        self._received, self._ends = bytearray(), 0
        if not (self._stays_open and is_exact):
            self.close()
        if not is_exact:
            self._settle(CallError(UNREADABLE))
        else:
            self._settle(body if status == "200" else CallError(f"HTTP_{status}"))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._settle(CallError(CONNECTION_LOST))

    def _read_head(self) -> bool:
        """Whether it has come. Raises `ValueError` if it isn't one, or tells no length."""
        end = self._received.find(_HEAD_END)
        if end < 0:
            if len(self._received) > _MAX_HEAD_BYTES:
                raise ValueError("a head without an end")
            return False
        status_line, *lines = bytes(self._received[:end]).split(b"\r\n")
        version, self._status, *_ = status_line.split(b" ", 2)
        if not version.startswith(b"HTTP/1."):
            raise ValueError(f"not HTTP/1.1: {version!r}")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if b"content-length" not in fields:
            raise ValueError("no Content-Length")
        self._body_starts = end + len(_HEAD_END)
        self._ends = self._body_starts + int(fields[b"content-length"])
        self._stays_open = version == b"HTTP/1.1" and fields.get(b"connection", b"").lower() != b"close"
        return True

    def _settle(self, outcome: bytes | CallError) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(outcome, bytes):
            self._answer.set_result(outcome)
        else:
            self._answer.set_exception(outcome)
