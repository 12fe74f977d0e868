"""Addresses that a server listens on."""

import socket

from fuseline.serve.errors import InputError

_HTTP_BACKLOG = 1024
"""Connections that may wait until they are accepted, as far as the system allows."""


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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


def unbindable(host: str, port: int, error: Exception) -> InputError:
    """Return the user's error for `error`, which kept gRPC from listening on `host:port`."""
    reason = getattr(error, "strerror", None) or error
    return InputError(
        f"gRPC can't listen on {join_address(host, port)} ({reason}); --port takes another one, 0 any free one, and "
        "--host another address"
    )
