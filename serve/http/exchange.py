"""One request, which is whole, and its answer."""

import asyncio
import mmap
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from fuseline.serve.errors import log_once
from fuseline.serve.http.call_of_scope import REQUEST_ID
from fuseline.serve.http.content_encoding import decompressed
from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.refusal import Refusal

_FIELD_NAMES = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_NO_BODY = frozenset((204, 304))


class Exchange(RequestResponseCycle):
    """Runs the application for one request. An error that the application doesn't answer becomes 500 with an id.

    The head of an answer is sent with the first part of its body, in one write.
    """

    encoding: bytes = b""
    """Content encoding of the body; empty: it is sent as it is."""
    limits: HttpLimits
    charged_bytes: int = 0
    """Bytes that count in the total of all connections until the answer is sent."""
    charge: Callable[[int], None]
    """Counts more bytes in that total; raises `Refusal`."""
    is_followed: Callable[[], bool]
    """Whether more has come on the connection behind this request, which closing it would lose."""
    is_old: Callable[[], bool]
    """Whether the connection should end with an answer that nothing follows."""
    _head: bytes | None = None

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]
        """Answer the request by `app`. When the client has gone the task that runs this is cancelled."""
        try:
            if self.encoding:
                await self._decompress()
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
            if not (self.response_complete or self.disconnected):
                raise RuntimeError("the application returned without a whole answer")
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Refusal as refusal:
            await self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as 500
            await self._refuse(failure(error, self._request_id))
        finally:
            self.on_response = lambda: None

    async def receive(self) -> Any:
        """Return the whole body, `bytes` or a `bytearray`, in one message; when called again, wait for the end."""
        if self.more_body:
            self.more_body = False
            body: Any = self.body
            self.body = bytearray()
            if isinstance(body, mmap.mmap):
                # Parsers want methods that pages don't have.
                with body:
                    body = body[:]
            return {"type": "http.request", "body": body, "more_body": False}
        if not (self.disconnected or self.response_complete):
            await self.message_event.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Send a part of the answer, once the client has read most of what came before.

        Raises `RuntimeError` for a message that the ASGI specification forbids at this point.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind, expected = message["type"], "http.response.body" if self.response_started else "http.response.start"
        if kind != expected or self.response_complete:
            raise RuntimeError(f"{kind} was sent where {expected} was expected, or after the whole answer")
        if self.response_started:
            self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            self.response_started = True
            self._head = self._head_of(message["status"], message.get("headers", ()))

    @property
    def _request_id(self) -> str:
        request_id: Any = self.scope.get(REQUEST_ID, "")
        return str(request_id)

    def _head_of(self, status: int, fields: Any) -> bytes:
        parts = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in fields:
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"the header field {name!r} has more than one line")
            if name in _FIELD_NAMES and self._note(name, value):
                continue
            parts += (name, b": ", value, b"\r\n")
        if request_id := self._request_id:
            parts += (b"x-request-id: ", request_id.encode("ascii"), b"\r\n")
        if self.keep_alive and self.is_old():
            self.keep_alive = self.is_followed()
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def _note(self, name: bytes, value: bytes) -> bool:
        """Heed a field of the head; return whether it is only heeded, and sent by us."""
        match name:
            case b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            case b"transfer-encoding":
                self.chunked_encoding = True
            case _ if value.lower() == b"close":
                self.keep_alive &= self.is_followed()
                return True
        return False

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        parts: tuple[bytes, ...] = (body,)
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            parts = ()
        elif self.chunked_encoding:
            parts = (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            if is_last:
                parts = (*parts, b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
        if self.expected_content_length < 0 or (is_last and self.expected_content_length):
            raise RuntimeError("the answer's body has not the length that its head says")
        if self._head is not None:
            parts = (self._head, *parts)
            self._head = None
        self.transport.writelines(parts)
        if is_last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    async def _decompress(self) -> None:
        body = await decompressed(self.body, self.encoding, self.limits.max_body_bytes, self._charge_more)
        self.body = body  # type: ignore[assignment]
        length = (b"content-length", b"%d" % len(body))
        dropped = (b"content-encoding", b"content-length", b"transfer-encoding")
        self.scope["headers"] = [*(pair for pair in self.scope["headers"] if pair[0] not in dropped), length]

    def _charge_more(self, size: int) -> None:
        self.charge(size)
        self.charged_bytes += size

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer by `refusal`, or, if some of another answer is sent already, cut the connection."""
        if self.response_started and self._head is None:
            self.transport.abort()
            return
        self.response_started = False
        self.chunked_encoding = None
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
        await self.send({"type": "http.response.body", "body": refusal.body})


def failure(error: BaseException, request_id: str = "") -> Refusal:
    """Return the answer to a request on which the server failed; `error` is in the log under the id in the answer."""
    return Refusal(
        500,
        "the server failed on this request; other requests are not affected; its log has more under error "
        f"{log_once(error, request_id)}",
    )
