"""A registered region, and a part of it that an answer is written into."""

import reprlib
from abc import ABC, abstractmethod

from fuseline.serve.errors import RequestError
from fuseline.serve.shared_memory.registration import Registration


class Region(ABC):
    """Memory that a client shares with this process.

    It is kept open as long as anything refers to the region, also when it has been unregistered meanwhile. Positions
    are relative to the region; the caller has checked that they lie within `registration.byte_size`.
    """

    registration: Registration

    @abstractmethod
    def read(self, offset: int, out: memoryview) -> None:
        """Copy the bytes from `offset` on into `out`, all of it. Raises `RequestError` if the memory has shrunk."""

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Copy `data` to `offset`. Raises `RequestError` if the memory has shrunk, which is then as it was."""

    @abstractmethod
    def check_reaches(self, end: int) -> None:
        """Raise `RequestError` unless the memory still has `end` bytes."""

    @property
    def title(self) -> str:
        """What errors call the region; short, whatever the client named it."""
        return f"the shared memory region {reprlib.repr(self.registration.name)}"


class UnreachableRegion(Region):
    """A region that is registered, but that this process can't open."""

    def __init__(self, registration: Registration, reason: str) -> None:
        """Refuse every use of the region; `reason` is for the client."""
        self.registration = registration
        self._reason = reason

    def read(self, offset: int, out: memoryview) -> None:  # noqa: ARG002
        """Raise `RequestError`."""
        raise self._refusal

    def write(self, offset: int, data: memoryview) -> None:  # noqa: ARG002
        """Raise `RequestError`."""
        raise self._refusal

    def check_reaches(self, end: int) -> None:  # noqa: ARG002
        """Raise `RequestError`."""
        raise self._refusal

    @property
    def _refusal(self) -> RequestError:
        return RequestError(f"{self.title} has vanished: {self._reason}; unregister it, and register it again")


class RegionPart:
    """Room for an answer in a region, which stays open for it, also if it is unregistered meanwhile."""

    __slots__ = ("_offset", "_region", "byte_size")

    def __init__(self, region: Region, offset: int, byte_size: int) -> None:
        """Take `byte_size` bytes from `offset` on, which lie within the region."""
        self._region = region
        self._offset = offset
        self.byte_size = byte_size
        """Number of bytes that there is room for."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Copy `data`, any bytes-like object, to the beginning of the part.

        Raises:
            RequestError: it is larger than the part, or the client has shrunk its memory, which is then as it was.
        """
        view = memoryview(data).cast("B")
        if len(view) > self.byte_size:
            raise RequestError(
                f"an output of {len(view)} bytes doesn't fit into {self.byte_size} bytes of {self._region.title}; give "
                "it a larger part"
            )
        self._region.write(self._offset, view)
