"""Bytes of a body, as they come."""

import mmap

from fuseline.serve.http.refusal import too_large

_MAPPED_FROM_BYTES = 2**19


class BodyBuffer:
    """Collects a body of at most `max_bytes`.

    Much of it lies in pages of its own, which take memory only as they are written, grow without a copy, and go back to
    the system at once: arrays that grow side by side on the heap leave holes of several times their size.
    """

    __slots__ = ("_array", "_map", "_max_bytes", "size")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._array = bytearray()
        self._map: mmap.mmap | None = None
        self.size = 0
        """Number of bytes so far."""

    def append(self, part: bytes, expected: int = 0) -> None:
        """Add `part`. After it, as many as `expected` bytes more are known to come.

        Raises:
            Refusal: more than `max_bytes`; nothing is added.
        """
        size = self.size + len(part)
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._map is None and size + expected < _MAPPED_FROM_BYTES:
            self._array += part
        else:
            self._pages(size + expected)[self.size : size] = part
        self.size = size

    def content(self) -> bytearray | mmap.mmap:
        """Return the body, which is the caller's from now on."""
        if self._map is None:
            return self._array
        if len(self._map) > self.size:
            self._map.resize(self.size)
        return self._map

    def _pages(self, size: int) -> mmap.mmap:
        if self._map is None:
            # Private ones: pages that are shared can't grow, and writing beyond their end is a SIGBUS.
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._map[: self.size] = self._array
            self._array = bytearray()
        elif size > len(self._map):
            self._map.resize(min(self._max_bytes, max(size, 2 * len(self._map))))
        return self._map
