"""What a client registers: a name for memory that it shares."""

import reprlib
from dataclasses import dataclass
from typing import ClassVar, Literal

from fuseline.serve.errors import RequestError

RegionKind = Literal["system", "cuda"]

MOST_NAME_BYTES = 1024
"""Longest name of a region in bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class SystemRegistration:
    """A part of a POSIX shared memory object."""

    kind: ClassVar[RegionKind] = "system"
    name: str
    key: str
    """Name of the object as shm_open takes it, with or without the `/` before it."""
    offset: int
    """Offset of the region within the object in bytes."""
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaRegistration:
    """Memory on a GPU that another process has allocated."""

    kind: ClassVar[RegionKind] = "cuda"
    name: str
    raw_handle: bytes
    """The `cudaIpcMemHandle_t` of the memory."""
    device_id: int
    byte_size: int


Registration = SystemRegistration | CudaRegistration


def check_registration(registration: Registration) -> None:
    """Raise `RequestError` unless the name and the size can be those of any region."""
    length = _utf8_length(registration.name)
    if length is None or not 0 < length <= MOST_NAME_BYTES:
        raise RequestError(
            f"a shared memory region can't be named {reprlib.repr(registration.name)}; a name is 1 to "
            f"{MOST_NAME_BYTES} bytes of UTF-8"
        )
    if registration.byte_size < 1:
        raise RequestError(
            f"the shared memory region {reprlib.repr(registration.name)} was given {registration.byte_size} bytes; "
            "register at least one"
        )


def _utf8_length(text: str) -> int | None:
    """Return the number of bytes of `text`; None for one that is no Unicode text, as JSON can hold."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
