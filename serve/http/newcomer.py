"""A connection that was accepted before it is known for whom."""

import socket
import ssl

from fuseline.serve.http.http_server import HttpServer
from fuseline.serve.http.tls_connection import HANDSHAKE_BYTE
from fuseline.serve.tls.session import TlsSession

_PEEKED_BYTES = 1024
_READ_BYTES = 2**16


class Newcomer:
    """A connection of which only the first bytes are looked at. Over TLS that takes the handshake.

    Whoever serves it gets every byte, and where there is TLS its session.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        """Own `connection`; with `context` it is of TLS."""
        self._connection = connection
        self._context = context
        self._session: TlsSession | None = None
        self._received = b""

    def first_bytes(self) -> bytes | None:
        """Return the first bytes of what the client says, below TLS if it speaks TLS; None: they have yet to come.

        Raises:
            OSError: the client has gone, or its handshake has failed.
        """
        try:
            return self._peeked() if self._context is None else self._decrypted(self._context)
        except BlockingIOError:
            return None

    def serve_by(self, server: HttpServer) -> None:
        """Give the connection to `server`. Call it on that server's event loop."""
        server.adopt(self._connection, self._session, self._received)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _peeked(self) -> bytes:
        first = self._connection.recv(_PEEKED_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not first:
            raise ConnectionError("the client has gone")
        return first

    def _decrypted(self, context: ssl.SSLContext) -> bytes | None:
        if self._session is None:
            if (first := self._peeked())[0] != HANDSHAKE_BYTE:
                return first
            self._session = TlsSession(context)
        data = self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        if not data:
            raise ConnectionError("the client has gone")
        try:
            self._received += self._session.receive(data)
        finally:
            # The parts of a handshake are far smaller than a new socket's buffer.
            if answer := self._session.to_send():
                self._connection.send(answer, socket.MSG_DONTWAIT)
        if self._session.has_ended:
            raise ConnectionError("the client has gone")
        return self._received or None
