"""One HTTP/1 connection, within limits.

uvicorn's protocol starts the application at the end of a request's head, and has no limits. Here the application is
started once the request is whole: what is too large, too slow or malformed is refused before any handler runs, a
handler gets the body in one message, and a client that goes away while its request is answered cancels the handler.
"""

import asyncio
import urllib.parse
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fuseline.serve.http.call_of_scope import REQUEST_ID
from fuseline.serve.http.connection_group import ConnectionGroup
from fuseline.serve.http.exchange import Exchange, failure
from fuseline.serve.http.http_gate import identify
from fuseline.serve.http.refusal import Refusal
from fuseline.serve.http.request_body import FRAMING_FIELDS, RequestBody
from fuseline.serve.services.request_ids import REQUEST_ID_KEY, kept_or_made

_SLICE_BYTES = 1024
"""Bytes that are parsed at a time. All requests within one slice are parsed at once, and the shortest ones then take
about 80 times their size in memory; what follows the slice waits unparsed until they are answered."""

_UNSLICED_BYTES = 16_384
"""Length up to which what comes is searched for further requests, and parsed at once where it has none."""

_REFUSED_AT_ONCE = 128
"""Connections beyond the limit that are told so; further ones are only closed."""

_REQUEST_ID_FIELD = REQUEST_ID_KEY.encode()

_UNREADABLE = "this is no valid HTTP/1.1 request"


class HttpConnection(HttpToolsProtocol):
    """Reads requests, one after another, and has each answered in its turn. Every refusal is JSON, and closes."""

    def __init__(self, group: ConnectionGroup) -> None:
        super().__init__(group.config, group.state, {})
        self._group = group
        self._limits = group.limits
        self._since = self._born = group.now
        self._unsent_since: float | None = None
        self._running: asyncio.Task[None] | None = None
        """Task of the request whose turn it is; None: none is whole."""
        self._refusal: Refusal | None = None
        """What ends this connection, as soon as it is its turn; nothing that came after it is parsed."""
        self._refused = False
        self._unparsed = bytearray()
        self._unanswered_bytes = 0
        self._unsent_bytes = 0
        # Of the request that is being parsed:
        self._begun = False
        self._in_body = False
        self._body = RequestBody(group)
        self._fed_bytes = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.max_connections
        if excess > _REFUSED_AT_ONCE:
            transport.abort()
        elif excess > 0:
            self._end_with(
                Refusal(
                    503,
                    f"{self._limits.max_connections} connections are open, the most that are; close some, or connect "
                    "again later",
                    ((b"retry-after", b"1"),),
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._group.release(self._unanswered_bytes + self._unsent_bytes + len(self._unparsed))
        self._unanswered_bytes = self._unsent_bytes = 0
        self._unparsed.clear()
        self._refused = True
        self.pipeline.clear()
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused or self._refusal is not None or self.transport.is_closing():
            return
        if self._running is not None or self._unparsed:
            self._set_aside(data)
        elif len(data) <= _UNSLICED_BYTES and data.find(b" HTTP/", _SLICE_BYTES) < 0:
            self._feed(data)
        else:
            self._parse(memoryview(data))

    def name_client(self, name: str) -> None:
        """Let the requests of this connection come from `name`, whom TLS has made out, instead of from a host."""
        self.client = (name, self.client[1] if self.client else 0)

    # Reading

    def _parse(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            start += self._feed(data[start : start + max(_SLICE_BYTES, self._body.left)])
            if self._refused or self._refusal is not None:
                return
            if self._running is not None:
                self._set_aside(data[start:])
                return

    def _feed(self, data: bytes | memoryview) -> int:
        """Parse `data`, and return how many bytes of it were used."""
        self._fed_bytes += len(data)
        used, wants_upgrade = len(data), False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            used, wants_upgrade = upgrade.args[0], True
        except httptools.HttpParserError as error:
            self._refuse(_refusal_of(error))
        # Not within `except`: what follows there has the upgrade as its context, which `_refusal_of` looks at.
        if wants_upgrade:
            self._ignore_upgrade()
            is_refused = self._refused or self._refusal is not None
            if isinstance(data, bytes) and used < len(data) and not is_refused:
                self._parse(memoryview(data)[used:])
        if self._fed_bytes > self._limits.max_head_bytes and self._refusal is None:
            self._refuse(
                Refusal(
                    431, f"the request's header fields have more than {self._limits.max_head_bytes} bytes; send fewer"
                )
            )
        return used

    def _set_aside(self, data: bytes | memoryview) -> None:
        """Keep `data`, which is parsed when the request under way is answered."""
        if not len(data):
            return
        try:
            self._group.charge(len(data))
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._unparsed += data
        if len(self._unparsed) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def _resume(self) -> None:
        if self._running is not None or self._refused or self.transport.is_closing():
            return
        unparsed, self._unparsed = self._unparsed, bytearray()
        self._group.release(len(unparsed))
        self.flow.resume_reading()
        self._parse(memoryview(unparsed))

    def _ignore_upgrade(self) -> None:
        """Parse the head of the latest request again, without its wish for another protocol (RFC 9110, 7.8)."""
        lines = [b"%s %s HTTP/1.1" % (self.scope["method"].encode(), self.url)]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join((*lines, b"", b"")))

    # The parser's callbacks. What they raise ends the parsing.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fed_bytes = 0
        self._begun = True
        self._body = RequestBody(self._group)
        self._since = self._group.now

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer, which nobody needs
        name = name.lower()
        if name in FRAMING_FIELDS:
            self._body.note(name, value)
        elif name == _REQUEST_ID_FIELD:
            self.scope[REQUEST_ID] = kept_or_made(value)  # type: ignore[literal-required]
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._fed_bytes = 0
        version = self.parser.get_http_version()
        self.scope["method"] = method = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        if version not in {"1.1", "1.0"}:
            raise Refusal(505, f"this server speaks HTTP/1.1 and 1.0, not {version}")
        if method == "CONNECT":
            raise Refusal(501, "this server is no proxy")
        if self.parser.should_upgrade():
            return
        url = httptools.parse_url(self.url)
        # An empty path, which only a target with an authority has, means the root (RFC 9110, 4.2.3).
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        self.scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        self.scope["raw_path"] = raw_path
        self.scope["query_string"] = url.query or b""
        if self._group.gate is not None:
            identify(self._group.gate, cast("dict[str, Any]", self.scope), self.headers)
        self._body.begin()
        self._in_body = True
        self._since = self._group.now
        # Nothing may come between the parts of an answer under way; its client goes on by itself after a while.
        if self._body.awaits_100 and self._running is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._fed_bytes = 0
        self._body.add(body)
        self._unanswered_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_ignore_upgrade` follows
        self._begun = self._in_body = False
        exchange = Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.scope["http_version"] == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        body = self._body.take()
        exchange.body = body  # type: ignore[assignment]
        exchange.encoding = self._body.encoding
        exchange.charged_bytes = len(body)
        exchange.limits = self._limits
        exchange.charge = self._charge
        exchange.is_followed = self._is_followed
        exchange.is_old = self.is_old
        if self._running is None:
            self._answer(exchange)
        else:
            self.pipeline.appendleft((exchange, self.app))

    # Answering

    def _answer(self, exchange: Exchange) -> None:
        if self._group.draining and not self.pipeline:
            exchange.keep_alive = False
        self.cycle = exchange
        self._running = task = self.loop.create_task(exchange.run_asgi(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """Go on with the next request; the application has written its last byte of the present one."""
        self._running = None
        self._since = self._group.now
        exchange: Any = self.cycle
        self._unanswered_bytes -= exchange.charged_bytes
        self._group.release(exchange.charged_bytes)
        self._count_unsent()
        if self.transport.is_closing():
            return
        if self.pipeline:
            following: Any = self.pipeline.pop()[0]
            self._answer(following)
        elif self._refusal is not None:
            self._end_with(self._refusal)
        elif self._unparsed:
            # In a turn of its own, so that other connections have theirs.
            self.loop.call_soon(self._resume)

    def is_old(self) -> bool:
        """Return whether the connection is to end, so that its client connects anew, maybe to another server."""
        return 0 < self._limits.age_s <= self._group.now - self._born

    def _is_followed(self) -> bool:
        return bool(self.pipeline or self._unparsed)

    def _charge(self, size: int) -> None:
        self._group.charge(size)
        self._unanswered_bytes += size

    def _count_unsent(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._group.held_bytes += size - self._unsent_bytes
        self._unsent_bytes = size

    # Ending

    def _refuse(self, refusal: Refusal) -> None:
        """Answer by `refusal` once what came before is answered."""
        if self._running is None:
            self._end_with(refusal)
        else:
            self._refusal = refusal

    def _end_with(self, refusal: Refusal) -> None:
        self.transport.write(refusal.answer(self.server_state.default_headers))
        self.transport.write_eof()
        # Closing now would have the kernel reset the connection, and the client would lose the answer.
        self.linger()

    def linger(self) -> None:
        """Throw away what still comes for a while, then cut the connection; nothing is parsed or answered any more."""
        self._refused = True
        self._since = self._group.now
        self.flow.resume_reading()

    def sweep(self) -> None:
        """Cut the connection if its client has taken longer than it may. Called once in `sweep_s`."""
        now, limits = self._group.now, self._limits
        self._count_unsent()
        if not self._unsent_bytes:
            self._unsent_since = None
        elif self._unsent_since is None:
            self._unsent_since = now
        elif now - self._unsent_since > limits.answer_s:
            self.transport.abort()
            return
        if self._running is not None or self.transport.is_closing():
            return
        taken_s = now - self._since - limits.sweep_s
        if self._refused:
            if taken_s > limits.linger_s:
                self.transport.abort()
        elif self._in_body:
            if taken_s > limits.body_s:
                self._refuse(Refusal(408, f"the body was not complete within {limits.body_s:g} s"))
        elif self._begun:
            if taken_s > limits.head_s:
                self._refuse(Refusal(408, f"the request's head was not complete within {limits.head_s:g} s"))
        elif taken_s > (limits.head_s if self.cycle is None else limits.idle_s):
            self.transport.close()

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request is there, of which the rest has yet to come."""
        return self._begun

    @property
    def is_new(self) -> bool:
        """Whether nothing has come over it yet: who has just connected is about to ask."""
        return self.cycle is None and not (self._begun or self._refused or self.transport.is_closing())

    @property
    def has_unsent(self) -> bool:
        """Whether bytes of an answer wait for the client to read."""
        return bool(self.transport.get_write_buffer_size())

    def close_after_answer(self) -> None:
        """Close the connection once the answer that is under way is sent, and those to requests that are whole too."""
        if self._running is not None and not self.pipeline:
            self.cycle.keep_alive = False

    def end(self) -> None:
        """Refuse the request that is not whole yet, if there is one, and close the connection."""
        if self._running is not None or self._refused or self.transport.is_closing():
            return
        if self._begun:
            self._end_with(Refusal(503, "the server is shutting down; send this to another server, or again later"))
        else:
            self.transport.close()


def _refusal_of(error: httptools.HttpParserError) -> Refusal:
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if isinstance(cause, httptools.HttpParserError | UnicodeDecodeError):
        return Refusal(400, f"{_UNREADABLE}: its target is malformed")
    if cause is not None:
        return failure(cause)
    return Refusal(400, f"{_UNREADABLE}: {error}")
