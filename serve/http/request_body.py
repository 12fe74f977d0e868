"""The body of a request, as it comes."""

import mmap

from fuseline.serve.http.body_buffer import BodyBuffer
from fuseline.serve.http.connection_group import ConnectionGroup
from fuseline.serve.http.refusal import Refusal, too_large

Body = bytes | bytearray | mmap.mmap
"""A whole body."""

FRAMING_FIELDS = frozenset((b"content-length", b"content-encoding", b"transfer-encoding", b"expect"))
"""Header fields that a `RequestBody` is told."""


class RequestBody:
    """Collects the body of one request within the limits of its group."""

    __slots__ = ("_buffer", "_fields", "_group", "_whole", "left")

    def __init__(self, group: ConnectionGroup) -> None:
        self._group = group
        self._fields: dict[bytes, bytes] = {}
        self._whole = b""
        self._buffer: BodyBuffer | None = None
        self.left = 0
        """Bytes that have yet to come; 0 also for a chunked body, which doesn't tell."""

    @property
    def encoding(self) -> bytes:
        """Content encoding in lower case; empty: it is sent as it is."""
        encoding = self._fields.get(b"content-encoding", b"").lower()
        return b"" if encoding == b"identity" else encoding

    @property
    def awaits_100(self) -> bool:
        """Whether the client sends the body only when it is told to."""
        return self._fields.get(b"expect", b"").lower() == b"100-continue"

    def note(self, name: bytes, value: bytes) -> None:
        """Take one of `FRAMING_FIELDS`; the parser has refused lengths that are malformed or contradict."""
        self._fields[name] = self._fields[name] + b", " + value if name in self._fields else value

    def begin(self) -> None:
        """Check, at the end of the head, what it says of the body. Raises `Refusal`."""
        if not self._fields:
            return
        if self._fields.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise Refusal(501, "of transfer encodings only chunked is known")
        # int() refuses more than some thousand digits, and zeros are among them.
        self.left = int(self._fields.get(b"content-length", b"").lstrip(b" \t0") or 0)
        if self.left > self._group.limits.max_body_bytes:
            raise too_large(self._group.limits.max_body_bytes)

    def add(self, part: bytes) -> None:
        """Take the next part, which counts in the group's total from now on, and is the connection's to release.

        Raises `Refusal` for a body that is too large, or where too much is under way.
        """
        size = len(part)
        self._group.charge(size)
        try:
            if self.left == size and self._buffer is None:
                self._whole = part
            else:
                if self._buffer is None:
                    self._buffer = BodyBuffer(self._group.limits.max_body_bytes)
                self._buffer.append(part, max(0, self.left - size))
        except BaseException:
            self._group.release(size)
            raise
        self.left = max(0, self.left - size)

    def take(self) -> Body:
        """Return all that has come, and keep nothing."""
        content: Body = self._whole if self._buffer is None else self._buffer.content()
        self._whole, self._buffer = b"", None
        return content
