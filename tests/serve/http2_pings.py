"""HTTP/2 (RFC 9113) as far as pings need it, by hand: a gRPC client chooses when it pings, this one is told."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _SETTINGS, _PING, _GOAWAY = 1, 4, 6, 7
_ACK, _END_HEADERS = 1, 4
ENHANCE_YOUR_CALM = 11


class ConnectionEndedError(Exception):
    """The server has ended the connection; `code` is the reason that it gave (RFC 9113, 7)."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class PingingConnection:
    """A connection that pings, with an open call or without any."""

    def __init__(self, connection: socket.socket, stream: BinaryIO) -> None:
        """`stream` reads from `connection`."""
        self._connection = connection
        self._stream = stream
        connection.sendall(_PREFACE + _frame(_SETTINGS))

    def open_call(self, path: str | bytes, **metadata: bytes) -> None:
        """Begin a call of the gRPC method `path`, and neither send a message nor end."""
        # RFC 7541: fields of the static table, and literals that are not indexed, names by their number in the table.
        post, http, authority, its_path, content_type = b"\x83", b"\x86", b"\x01", b"\x04", b"\x0f\x10"
        fields = post + http + authority + _text("localhost") + its_path + _text(path)
        fields += content_type + _text("application/grpc") + b"\0" + _text("te") + _text("trailers")
        for key, value in metadata.items():
            fields += b"\0" + _text(key.replace("_", "-")) + _text(value)
        self._connection.sendall(_frame(_HEADERS, fields, _END_HEADERS, stream=1))

    def until_ended(self) -> None:
        """Return once the server has ended the connection."""
        with suppress(ConnectionEndedError, ConnectionError):
            self._next(None)

    def ping(self, count: int = 1) -> None:
        """Send pings, each once the one before is answered. Raises `ConnectionEndedError`."""
        for number in range(count):
            try:
                self._connection.sendall(_frame(_PING, struct.pack(">Q", number)))
            except ConnectionError as error:
                raise ConnectionEndedError(None, str(error)) from error
            assert self._next(_PING) == struct.pack(">Q", number)

    def _next(self, wanted: int | None) -> bytes:
        while True:
            head = self._stream.read(9)
            if len(head) < 9:
                raise ConnectionEndedError(None, "without a reason")
            size, kind, flags, _ = struct.unpack(">I", b"\0" + head[:3])[0], head[3], head[4], head[5:]
            payload = self._stream.read(size)
            if kind == _GOAWAY:
                raise ConnectionEndedError(struct.unpack(">I", payload[4:8])[0], payload[8:].decode())
            if kind == _SETTINGS and not flags & _ACK:
                self._connection.sendall(_frame(_SETTINGS, flags=_ACK))
            if kind == wanted and flags & _ACK:
                return payload


@contextmanager
def pinging_connection(address: str) -> Iterator[PingingConnection]:
    """Connect to `address`, which is host:port."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    with connection, connection.makefile("rb") as stream:
        yield PingingConnection(connection, stream)


def _frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return bytes((len(data),)) + data


PREFACE_AND_SETTINGS = _PREFACE + _frame(_SETTINGS)
"""What a connection begins with."""
