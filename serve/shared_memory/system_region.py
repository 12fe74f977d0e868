"""A region of a POSIX shared memory object (man 7 shm_overview).

Only an object that belongs to the server's own user, or that every user may read and write, is opened. Else any client
could have the server, which may be root, read and write for it what the client itself may not.
"""

import errno
import os
import reprlib
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

from fuseline.serve.errors import RequestError, SharedMemoryUnavailableError
from fuseline.serve.shared_memory.region import Region
from fuseline.serve.shared_memory.registration import SystemRegistration, check_registration

FOLDER = Path("/dev/shm")  # noqa: S108 where Linux keeps the objects, by name
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Flags with which nothing is followed, made a terminal, or waited for: a pipe, or a file that its owner has leased."""
_OPEN_TO_ALL = stat.S_IROTH | stat.S_IWOTH


def open_system_region(registration: SystemRegistration) -> "SystemRegion":
    """Open the object that `registration` names.

    Raises:
        RequestError: the name, key, offset or size is wrong; there is no such object, it is too small, it is no regular
            file, or it is another user's.
        SharedMemoryUnavailableError: this system has no POSIX shared memory in `FOLDER`.
    """
    check_registration(registration)
    if not FOLDER.is_dir():
        raise SharedMemoryUnavailableError(f"system shared memory needs Linux, with {FOLDER}; send tensors in requests")
    return _checked_region(registration, _opened(FOLDER / registration.object_name, registration))


def reopen_system_region(registration: SystemRegistration, file: Path, identity: tuple[int, int]) -> "SystemRegion":
    """Open, by a link of /proc/PID/fd, the object that another process of this server has opened.

    Raises:
        RequestError: it can't be opened, or `identity`, as `SystemRegion.identity`, is another object's.
    """
    try:
        opened = os.open(file, _FLAGS & ~os.O_NOFOLLOW)
    except OSError as error:
        raise RequestError(f"its object can't be opened ({error.strerror})") from error
    return _checked_region(registration, opened, identity)


class SystemRegion(Region):
    """A part of an open object, which is the same one whatever becomes of its name.

    It is read and written by system calls at positions (man 2 preadv), so that memory which the client takes away is an
    error, not the SIGBUS of a mapping; and what the client left unwritten takes no memory when it is read.
    """

    def __init__(self, registration: SystemRegistration, file: int, identity: tuple[int, int]) -> None:
        """Take over the descriptor `file` of the object, which has been checked."""
        self.registration: SystemRegistration = registration
        self.file = file
        """Descriptor of the object, closed with the region."""
        self.identity = identity
        """Device and inode of the object."""
        weakref.finalize(self, os.close, file).atexit = False

    def read(self, offset: int, out: memoryview) -> None:
        """See `Region.read`."""
        position = self.registration.offset + offset
        while out:
            count = self._checked(os.preadv, out, position)
            if not count:
                raise self._shrunk(os.fstat(self.file).st_size)
            out = out[count:]
            position += count

    def write(self, offset: int, data: memoryview) -> None:
        """See `Region.write`. Memory that the client shrinks at this very moment may grow back, within the region."""
        # A write beyond the end makes an object larger.
        self.check_reaches(offset + len(data))
        position = self.registration.offset + offset
        while data:
            count = self._checked(os.pwritev, data, position)
            data = data[count:]
            position += count

    def check_reaches(self, end: int) -> None:
        """See `Region.check_reaches`."""
        size = os.fstat(self.file).st_size
        if size < self.registration.offset + end:
            raise self._shrunk(size)

    def _checked(self, call: Callable[[int, list[memoryview], int], int], buffer: memoryview, position: int) -> int:
        try:
            return call(self.file, [buffer], position)
        except OSError as error:
            raise RequestError(f"{self.title} can't be copied ({error.strerror}); send tensors in requests") from error

    def _shrunk(self, size: int) -> RequestError:
        registration = self.registration
        return RequestError(
            f"{self.title} has shrunk: its object {reprlib.repr(registration.key)} has {size} bytes now, the region "
            f"ends at {registration.offset + registration.byte_size}; make it as large again, or register it again"
        )


def _checked_region(
    registration: SystemRegistration, file: int, identity: tuple[int, int] | None = None
) -> SystemRegion:
    """Return the region of the descriptor `file`, which is closed if the object may not be used, or is another one."""
    try:
        found = os.fstat(file)
        if identity not in {None, (found.st_dev, found.st_ino)}:
            raise RequestError("its object is no longer open")
        _check_usable(found, registration)
    except BaseException:
        os.close(file)
        raise
    return SystemRegion(registration, file, (found.st_dev, found.st_ino))


def _opened(path: Path, registration: SystemRegistration) -> int:
    key = reprlib.repr(registration.key)
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError as error:
        raise RequestError(
            f"there is no shared memory object {key} on the server's machine; create it before it is registered (a "
            "container sees only its own, unless both share /dev/shm)"
        ) from error
    except PermissionError as error:
        raise _not_open(key) from error
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise _no_object(key) from error
        raise RequestError(f"the shared memory object {key} can't be opened ({error.strerror})") from error


def _check_usable(found: os.stat_result, registration: SystemRegistration) -> None:
    key = reprlib.repr(registration.key)
    if not stat.S_ISREG(found.st_mode):
        raise _no_object(key)
    if found.st_uid != os.geteuid() and found.st_mode & _OPEN_TO_ALL != _OPEN_TO_ALL:
        raise _not_open(key)
    if registration.offset < 0 or registration.offset + registration.byte_size > found.st_size:
        raise RequestError(
            f"{registration.byte_size} bytes at offset {registration.offset} are not within the shared memory object "
            f"{key}, which has {found.st_size} bytes"
        )


def _no_object(key: str) -> RequestError:
    return RequestError(f"{key} is no shared memory object but a link, folder, pipe, socket or device; use shm_open")


def _not_open(key: str) -> RequestError:
    return RequestError(
        f"the shared memory object {key} is another user's than the server's (user {os.geteuid()}) and not open to "
        "all, or not writable; a server must not lend its rights to its clients: run client and server as the same "
        "user, or let all users read and write the object (chmod o+rw)"
    )
