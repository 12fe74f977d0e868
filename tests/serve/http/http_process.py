"""HTTP servers in the test's own event loop, and raw connections to them."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.tls.certificate import CertificateFiles
from tests.serve.certificates import Authority, Pair


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message of an error's JSON."""
        assert self.headers["content-type"] == "application/json"
        message: str = json.loads(self.body)["error"]
        return message


class Connection:
    """A client that writes what it is told to, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Read one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        status = int(head[0].split()[1])
        if status == 100:
            return Answer(status, headers, b"")
        body = await self.reader.readexactly(int(headers["content-length"])) if has_body else b""
        return Answer(status, headers, body)

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def is_closed(self) -> bool:
        """Wait until the server has closed the connection; whether it did so without sending more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


def post(body: bytes, *fields: str, target: str = "/") -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: here", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@dataclass
class Http:
    """A server, and the address of its listener."""

    server: HttpServer
    address: tuple[str, int]
    tls: "Tls | None" = None

    @asynccontextmanager
    async def connection(
        self, receive_buffer: int | None = None, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[Connection]:
        """A connection of a client, over TLS that serves so, by `context` or one that trusts the server."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        if self.tls is not None:
            context = context or self.tls.client()
        name = None if context is None else "localhost"
        reader, writer = await asyncio.open_connection(sock=client, limit=2**16, ssl=context, server_hostname=name)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> Answer:
        """The answer to `data` on a connection of its own."""
        async with self.connection() as connection:
            return await connection.ask(data)


class Tls:
    """What a server over TLS shows, which a test may change, and contexts of clients."""

    def __init__(self, authority: Authority, *, wants_certificates: bool = False) -> None:
        self.authority = authority
        self._wants_certificates = wants_certificates
        self.show(authority.issue())

    def show(self, pair: Pair) -> None:
        """Show `pair` from now on."""
        client_ca = self.authority.ca if self._wants_certificates else None
        self.context = CertificateFiles(pair.cert, pair.key, client_ca).read().context

    def client(self, pair: Pair | None = None) -> ssl.SSLContext:
        """A client that trusts the authority, with a certificate of its own where it is given one."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return context


default_tls: list[Tls | None] = [None]
"""What `serving` serves over where it is not told."""


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=256)


@asynccontextmanager
async def serving(app: ASGIApp, tls: Tls | None = None, **limits: Any) -> AsyncIterator[Http]:
    """Serve `app` with limits that are short in time."""
    its, tls = listener(), tls or default_tls[0]
    context = None if tls is None else lambda: tls.context
    server = HttpServer(app, its, HttpLimits(**({"sweep_s": 0.02} | limits)), tls=context)
    await server.start()
    try:
        async with asyncio.timeout(30):
            yield Http(server, its.getsockname(), tls)
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition()`: what is waited for lies in the server, which tells no one."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
