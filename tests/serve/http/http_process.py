"""HTTP servers in the test's own event loop, and raw connections to them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from fuseline.serve.http.http_limits import HttpLimits
from fuseline.serve.http.http_server import HttpServer


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

    @asynccontextmanager
    async def connection(self, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        reader, writer = await asyncio.open_connection(sock=client, limit=2**16)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> Answer:
        """The answer to `data` on a connection of its own."""
        async with self.connection() as connection:
            return await connection.ask(data)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=256)


@asynccontextmanager
async def serving(app: ASGIApp, **limits: Any) -> AsyncIterator[Http]:
    """Serve `app` with limits that are short in time."""
    its = listener()
    server = HttpServer(app, its, HttpLimits(**({"sweep_s": 0.02} | limits)))
    await server.start()
    try:
        async with asyncio.timeout(30):
            yield Http(server, its.getsockname())
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition()`: what is waited for lies in the server, which tells no one."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
