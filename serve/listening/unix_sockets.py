"""Unix sockets that a server listens on, and their files."""

import errno
import os
import socket
import stat
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from fuseline.serve.errors import InputError

SCHEMES = ("unix:", "unix-abstract:")
"""Beginnings of the addresses of Unix sockets, as gRPC names them."""

MAX_PATH_BYTES = 107
"""Longest path: `sun_path` of Linux's sockaddr_un has 108 bytes, the last of them zero."""


def is_unix(address: str) -> bool:
    """Return whether `address` is that of a Unix socket."""
    return address.startswith(SCHEMES)


def check_unix_address(address: str) -> None:
    """Raise a `ValueError` that says what is wrong with the form of `address`, for which `is_unix` holds."""
    name = _name(address)
    scheme = address.partition(":")[0]
    if not name:
        raise ValueError(f"{scheme}: is followed by no {'path' if scheme == 'unix' else 'name'}")
    if scheme == "unix" and name.startswith(b"//"):
        raise ValueError("of unix://HOST/PATH the host must be empty: write unix:PATH")
    if len(name) > MAX_PATH_BYTES:
        raise ValueError(f"it has {len(name)} bytes; a Unix socket's path or name has at most {MAX_PATH_BYTES}")
    if set("?#") & set(address):
        raise ValueError("? is written %3F and # %23, because gRPC's clients read a URI")
    if scheme == "unix" and b"\0" in name:
        raise ValueError("a path can't hold a zero byte")


def socket_file(address: str) -> Path | None:
    """Return the file of a Unix socket; None for an abstract one, which has none."""
    return Path(os.fsdecode(_name(address))) if address.startswith("unix:") else None


def prepare_unix_address(address: str) -> None:
    """Make sure that a server can listen on `address`; the file of a socket that nobody listens on any more is removed.

    gRPC itself replaces the file also while another server listens, and tells errors only to its own log.

    Raises:
        InputError: a process listens there already, the path has a file of another kind, or the system refuses it.
    """
    path = socket_file(address)
    if path is not None:
        _remove_stale(path, address)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(b"\0" + _name(address) if path is None else os.fsencode(path))
        except OSError as error:
            raise _cannot_listen(address, _reason(path, error)) from error
    if path is not None:
        path.unlink()


def listening_unix_socket(address: str, backlog: int) -> socket.socket:
    """Return a socket that listens on `address`, whose file belongs to the caller. Raises as `prepare_unix_address`."""
    prepare_unix_address(address)
    path = socket_file(address)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(b"\0" + _name(address) if path is None else os.fsencode(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, _reason(path, error)) from error
    return listener


def unix_address(path: Path) -> str:
    """Return the address of the socket `path`."""
    return f"unix:{quote(os.fsencode(path))}"


def _name(address: str) -> bytes:
    """Return the path or the abstract name; as in a URI, %20 may stand for a space and `///` for the first slash."""
    name = unquote_to_bytes(os.fsencode(address.partition(":")[2]))
    return name[2:] if address.startswith("unix:///") else name


def _remove_stale(path: Path, address: str) -> None:
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode):
            raise _cannot_listen(address, f"{path} is there and is no socket; remove it, or choose another path")
        if _is_live(path):
            raise _cannot_listen(address, "a process listens there already; end it, or choose another path")
        # Another server that starts at this moment may have replaced it.
        if path.lstat().st_ino == found.st_ino:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(address, _reason(path, error)) from error


def _is_live(path: Path) -> bool:
    """Return whether a process listens on the socket `path`. Raises `OSError` where that can't be told."""
    with socket.socket(socket.AF_UNIX) as caller:
        # A server that is too busy to accept keeps others waiting.
        caller.setblocking(False)
        try:
            caller.connect(os.fsencode(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
    return True


def _reason(path: Path | None, error: OSError) -> str:
    if path is None:
        return error.strerror or str(error)
    folder = path.absolute().parent
    match error.errno:
        case errno.ENOENT:
            return f"there is no folder {folder}; make it, or choose another path"
        case errno.EACCES:
            return f"Permission denied: this user can't make or use a socket in {folder}"
        case errno.EPROTOTYPE:
            return f"{path} is a socket of another type; remove it, or choose another path"
    return error.strerror or str(error)


def _cannot_listen(address: str, reason: str) -> InputError:
    return InputError(f"gRPC can't listen on {address} ({reason})")
