"""What a client registers: a name for memory that it shares."""

import reprlib
from dataclasses import dataclass
from typing import ClassVar, Literal

from fuseline.serve.errors import RequestError

RegionKind = Literal["system", "cuda"]

MOST_NAME_BYTES = 1024
"""Longest name of a region in bytes of UTF-8."""

CUDA_HANDLE_BYTES = 64
"""Size of a `cudaIpcMemHandle_t`."""

_MOST_KEY_BYTES = 255
_SEMAPHORE_PREFIX = "sem."
"""Objects whose names begin so are named semaphores (man 7 sem_overview), not shared memory."""


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

    @property
    def object_name(self) -> str:
        """`key` without the `/`."""
        return self.key.removeprefix("/")


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
    """Raise `RequestError` if the registration can be seen to be wrong without its memory.

    One that passes is of bounded size.
    """
    name, byte_size = registration.name, registration.byte_size
    if not 0 < _utf8_length(name) <= MOST_NAME_BYTES:
        raise RequestError(
            f"a shared memory region can't be named {reprlib.repr(name)}; a name is 1 to {MOST_NAME_BYTES} bytes of "
            "UTF-8"
        )
    if byte_size < 1:
        raise RequestError(
            f"the shared memory region {reprlib.repr(name)} was given {byte_size} bytes; register at least one"
        )
    if isinstance(registration, SystemRegistration):
        _check_key(registration)
    elif len(registration.raw_handle) != CUDA_HANDLE_BYTES:
        raise RequestError(
            f"the raw_handle has {len(registration.raw_handle)} bytes; a cudaIpcMemHandle_t has {CUDA_HANDLE_BYTES}"
        )


def _check_key(registration: SystemRegistration) -> None:
    name = registration.object_name
    if name in {".", ".."} or "/" in name or "\0" in name or not 0 < _utf8_length(name) <= _MOST_KEY_BYTES:
        raise RequestError(
            f"the key {reprlib.repr(registration.key)} names no POSIX shared memory object; a key is the name that "
            f"shm_open takes: one `/`, which may be left out, and 1 to {_MOST_KEY_BYTES} bytes without another one"
        )
    if name.startswith(_SEMAPHORE_PREFIX):
        raise RequestError(
            f"the key {reprlib.repr(registration.key)} is that of a named semaphore; choose a name without "
            f"{_SEMAPHORE_PREFIX!r} before it"
        )


def _utf8_length(text: str) -> int:
    """Return the number of bytes of `text`; 0 for one that is no Unicode text, as JSON can hold."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
