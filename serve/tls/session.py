"""The server's side of one TLS connection, apart from its socket."""

import ssl
from contextlib import suppress

_READ_BYTES = 2**18


class TlsSession:
    """Turns what comes on a connection into plain bytes, and plain bytes into what is to be sent.

    It belongs to no thread and no event loop, so a connection can change both between two calls.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        """Begin before the handshake."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False
        """Whether the handshake is complete; nothing can be encrypted before."""
        self.has_ended = False
        """Whether the client has said that it sends nothing more."""

    def receive(self, data: bytes) -> bytes:
        """Return the plain bytes that are complete with `data`, which came. After it `to_send` may have more.

        Raises:
            ssl.SSLError: the client breaks the protocol, or its certificate is refused; `to_send` has what tells it.
        """
        self._incoming.write(data)
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""

    def encrypt(self, data: bytes) -> None:
        """Add `data` to what is to be sent."""
        if data:
            self._tls.write(data)

    def end(self) -> None:
        """Add to what is to be sent that nothing follows."""
        # It waits for the client to say the same, or can't any more.
        with suppress(ssl.SSLError):
            self._tls.unwrap()

    def to_send(self) -> bytes:
        """Return what is to be sent now, each byte once."""
        return self._outgoing.read()

    def peer_certificate(self) -> tuple[dict[str, object], bytes] | None:
        """Return the client's certificate, which was verified, as `ssl` describes it and in DER; None: it has none."""
        described, der = self._tls.getpeercert(), self._tls.getpeercert(binary_form=True)
        return None if not described or der is None else (dict(described), der)

    def _read(self) -> bytes:
        parts: list[bytes] = []
        try:
            while not self.has_ended:
                if part := self._tls.read(_READ_BYTES):
                    parts.append(part)
                else:
                    self.has_ended = True
        except ssl.SSLWantReadError:
            pass  # of the next record there is a part at most
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        return b"".join(parts)
