"""HTTP requests that come by Ray's proxy, answered by the application that `fuseline serve` has.

Ray's proxy reads connections, and hands on a body in parts. What the connections of `fuseline serve` do before they run
the application is done here: a body is whole and within its limit, or refused; compressed ones are decompressed; tokens
are looked at by the head alone; ids of requests are kept.
"""

import urllib.parse
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fuseline.serve.access.gate import Gate
from fuseline.serve.http.body_buffer import BodyBuffer
from fuseline.serve.http.call_of_scope import REQUEST_ID
from fuseline.serve.http.content_encoding import decompressed
from fuseline.serve.http.exchange import failure
from fuseline.serve.http.http_gate import identify
from fuseline.serve.http.refusal import Refusal, too_large
from fuseline.serve.services.request_ids import REQUEST_ID_KEY, kept_or_made

_ID = REQUEST_ID_KEY.encode()
_FRAMING = frozenset((b"content-encoding", b"content-length", b"transfer-encoding"))


class _ClientGone(Exception):  # noqa: N818 nobody is left to be told
    """The client has gone before its request was whole."""


class HttpDoor:
    """An ASGI application that answers by `app`, each of whose requests is whole when it runs."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, gate: Gate | None) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": f"{scope['type']}.close"})  # nothing here speaks over WebSockets
            return
        _strip_prefix(scope)
        begun = False
        if (id_sent := _field(scope["headers"], _ID)) is not None:
            scope[REQUEST_ID] = kept_or_made(id_sent)

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if request_id := scope.get(REQUEST_ID):
                    fields = [pair for pair in message.get("headers", ()) if pair[0].lower() != _ID]
                    message = {**message, "headers": [*fields, (_ID, request_id.encode())]}
            await send(message)

        try:
            if self._gate is not None:
                identify(self._gate, scope, scope["headers"])
            body = await self._body(scope, receive)
            await self._app(scope, _receive_once(body, receive), send_with_id)
        except _ClientGone:
            return
        except Refusal as refusal:
            await _refuse(refusal, send_with_id)
        except Exception as error:
            if begun:
                raise
            await _refuse(failure(error, scope.get(REQUEST_ID, "")), send_with_id)

    async def _body(self, scope: Scope, receive: Receive) -> Any:
        """Return the whole body, decompressed. Raises `Refusal`, or `_ClientGone` before the body is whole."""
        most = self._max_body_bytes
        told = _field(scope["headers"], b"content-length")
        if told is not None and told.isdigit() and int(told) > most:
            raise too_large(most)
        buffer = BodyBuffer(most)
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise _ClientGone
            if len(part := message.get("body", b"")):
                buffer.append(part)
            if not message.get("more_body", False):
                break
        body: Any = buffer.content()
        encoding = (_field(scope["headers"], b"content-encoding") or b"").lower()
        if encoding not in {b"", b"identity"}:
            body = await decompressed(body, encoding, most, lambda _: None)
            length = (b"content-length", b"%d" % len(body))
            scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] not in _FRAMING), length]
        return bytes(body) if not isinstance(body, bytes | bytearray) else body


def _field(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)


def _strip_prefix(scope: Scope) -> None:
    """Take the application's route prefix from the path, at whose begin the application's own routes are."""
    prefix = scope.get("root_path", "")
    if prefix and scope["path"].startswith(prefix):
        scope["path"] = scope["path"][len(prefix) :] or "/"
        scope["raw_path"] = urllib.parse.quote(scope["path"]).encode("ascii")


def _receive_once(body: bytes | bytearray, receive: Receive) -> Receive:
    """Return what hands out `body`, then waits for the end of the connection."""
    left: list[bytes | bytearray] = [body]

    async def receive_whole() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return receive_whole


async def _refuse(refusal: Refusal, send: Send) -> None:
    fields = [pair for pair in refusal.headers if pair[0] != b"connection"]
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": refusal.body})
