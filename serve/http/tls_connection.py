"""TLS below an HTTP connection.

asyncio's own TLS calls the protocol only after the handshake, tells nothing of what waits in the socket below it, and
can't end one direction alone. Here a connection counts, and is swept, from its first moment, so that a client that
never finishes its handshake costs what one costs that never sends a request; what its client leaves unread is seen; and
a refusal reaches a client that still sends.
"""

import asyncio
import ssl
from typing import Any, cast

from fuseline.serve.http.connection import HttpConnection
from fuseline.serve.http.refusal import Refusal
from fuseline.serve.tls.client_name import client_of_peer_certificate
from fuseline.serve.tls.session import TlsSession

HANDSHAKE_BYTE = 0x16
"""First byte that comes from a client that speaks TLS (RFC 8446, 5.1)."""


class TlsConnection(asyncio.Protocol):
    """Decrypts what comes for an `HttpConnection`, and encrypts what that answers."""

    def __init__(self, http: HttpConnection, session: TlsSession, received: bytes = b"") -> None:
        """Serve `http` by `session`, which may have begun elsewhere and has given `received`, plain bytes, there."""
        self._http = http
        self._session = session
        self._received = received
        self._is_new = not session.established

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio.Transport.
        self._lower = cast("asyncio.Transport", transport)
        self._transport = TlsTransport(self._lower, self._session)
        self._http.connection_made(self._transport)
        if self._session.established:
            self._name_client()
        if self._received:
            self._http.data_received(self._received)
            self._received = b""

    def data_received(self, data: bytes) -> None:
        if self._transport.is_ended or self._lower.is_closing():
            return
        if self._is_new and data[0] != HANDSHAKE_BYTE:
            self._refuse_plain(data)
            return
        self._is_new = False
        was_established = self._session.established
        try:
            plain = self._session.receive(data)
        except ssl.SSLError:
            self._fail()
            return
        self._transport.flush()
        if self._session.established and not was_established:
            self._name_client()
            self._transport.send_held()
        if plain:
            self._http.data_received(plain)
        if self._session.has_ended:
            self._transport.close()

    def eof_received(self) -> None:
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def _name_client(self) -> None:
        if (certificate := self._session.peer_certificate()) is not None:
            self._http.name_client(client_of_peer_certificate(*certificate))

    def _fail(self) -> None:
        """Tell the client why, as far as TLS does, and end the connection."""
        self._transport.flush()
        if self._session.established:
            self._lower.close()
        else:
            # A client that is refused for its certificate has sent its request already. Closing at once would have the
            # kernel reset the connection, and the client would lose the reason.
            self._transport.end_lower()
            self._http.linger()

    def _refuse_plain(self, data: bytes) -> None:
        if data[:1].isalpha():
            refusal = Refusal(400, "this port speaks TLS only; call it by https://")
            self._lower.write(refusal.answer(self._http.server_state.default_headers))
        self._transport.end_lower()
        self._http.linger()


class TlsTransport(asyncio.Transport):
    """What an `HttpConnection` writes to; what it writes before the handshake is complete waits for that."""

    def __init__(self, lower: asyncio.Transport, session: TlsSession) -> None:
        super().__init__()
        self._lower = lower
        self._session = session
        self._held = bytearray()
        self._ends_after_held = False
        self.is_ended = False
        """Whether nothing more can be sent."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_ended or self._lower.is_closing():
            return
        if self._session.established:
            self._session.encrypt(bytes(data))
            self.flush()
        else:
            self._held += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self.is_ended or self._lower.is_closing():
            return
        if self._session.established:
            self._session.end()
            self.flush()
            self.end_lower()
        else:
            self._ends_after_held = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._lower.is_closing():
            return
        if self._session.established and not self.is_ended:
            self._session.end()
            self.flush()
        self.is_ended = True
        self._lower.close()

    def abort(self) -> None:
        self.is_ended = True
        self._lower.abort()

    def is_closing(self) -> bool:
        return self._lower.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return True if name == "sslcontext" else self._lower.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return len(self._held) + self._lower.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._lower.pause_reading()

    def resume_reading(self) -> None:
        self._lower.resume_reading()

    def flush(self) -> None:
        """Send what TLS has to send."""
        if (data := self._session.to_send()) and not self._lower.is_closing():
            self._lower.write(data)

    def send_held(self) -> None:
        """Send what was written before the handshake was complete."""
        held, self._held = bytes(self._held), bytearray()
        if held:
            self.write(held)
        if self._ends_after_held:
            self.write_eof()

    def end_lower(self) -> None:
        """End the sending side of the connection, after what is on its way."""
        self.is_ended = True
        if not self._lower.is_closing():
            self._lower.write_eof()
