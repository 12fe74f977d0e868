"""The answer to a request that no handler sees."""

import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE


class Refusal(Exception):  # noqa: N818 an answer, which is raised to leave the parser
    """What a client is told about a request that breaks a limit or the protocol; its connection closes after it."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            (b"connection", b"close"),
            *headers,
        )

    @property
    def body(self) -> bytes:
        """`{"error": message}`."""
        return json.dumps({"error": str(self)}).encode()

    def answer(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the whole answer as it is sent."""
        lines = [name + b": " + value + b"\r\n" for name, value in (*default_headers, *self.headers)]
        return b"".join((STATUS_LINE[self.status], *lines, b"\r\n", self.body))


def too_large(max_bytes: int) -> Refusal:
    """Return the refusal of a body above `max_bytes`."""
    return Refusal(
        413, f"the body has more than {max_bytes} bytes, the most that is taken; send fewer images in a request"
    )
