"""Addresses that a server listens on."""

import ipaddress
import re
import socket
from collections.abc import Iterable

from fuseline.serve.errors import InputError
from fuseline.serve.listening.unix_sockets import check_unix_address, is_unix

_HTTP_BACKLOG = 1024
"""Connections that may wait until they are accepted, as far as the system allows."""


def is_local(address: str) -> bool:
    """Return whether only processes of this machine can reach `address`, which has one of gRPC's forms or is a host.

    True for the address of a Unix socket, for localhost, and for every loopback address, with a port or without; a
    name other than localhost is not looked up, and is none.
    """
    if is_unix(address):
        return True
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def host_to_call(host: str) -> str:
    """Return the host by which this machine reaches a server that listens on `host`; localhost: on every one."""
    try:
        return "localhost" if ipaddress.ip_address(host).is_unspecified else host
    except ValueError:
        return host


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of `address`, which has the form `host:port`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def first_port(addresses: Iterable[str]) -> int:
    """Return the port of the first of `addresses` that has one, or 0."""
    return next((split_address(address)[1] for address in addresses if not is_unix(address)), 0)


def checked_address(address: str) -> str:
    """Return `address`, which is to be listened on, if its form is right; nothing is looked up.

    Raises:
        ValueError: it is none of `host:port`, `unix:path` and `unix-abstract:name`; the message says why.
    """
    if is_unix(address):
        check_unix_address(address)
        return address
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]]+):([0-9]{1,5})", address, re.ASCII)
    if found is None or int(found[1]) > 65535:
        raise ValueError(
            "expected HOST:PORT, an IPv6 host in brackets and the port at most 65535, unix:PATH or unix-abstract:NAME"
        )
    return address


def check_bindable(host: str, port: int) -> None:
    """Raise an `OSError` that says why `host:port` can't be bound; gRPC itself tells that only to its own log."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()


def listening_for_http(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host:port` for HTTP.

    Raises:
        InputError: the port can't be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_HTTP_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"HTTP can't listen on {join_address(host, port)} ({error.strerror}); --http-port takes another one, "
            "0 does without"
        ) from error
    return listener


def claimed_port(host: str, port: int) -> socket.socket:
    """Return a socket that holds `host:port`, 0 being any free one, for processes of this user that share it.

    Those processes listen with SO_REUSEPORT; this socket never listens, so no connection is ever given to it. As long
    as it is open, a process that asks for the port for itself alone is refused, and so is `check_bindable`.

    Raises:
        OSError: another process has the port already.
    """
    check_bindable(host, port)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    claim = socket.socket(family, kind, protocol)
    try:
        # Without SO_REUSEADDR connections of an earlier server that linger in TIME_WAIT would forbid the port. It is
        # taken back once bound, else the next `check_bindable` would pass. SO_REUSEPORT is set only then, so that this
        # socket can't join a port that another process shares.
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claim.bind(address)
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        claim.close()
        raise
    return claim


def unbindable(address: str, error: Exception) -> InputError:
    """Return the user's error for `error`, which kept gRPC from listening on `address`."""
    reason = getattr(error, "strerror", None) or error
    return InputError(
        f"gRPC can't listen on {address} ({reason}); --port takes another one, 0 any free one, and "
        "--host another address, or --listen both"
    )
