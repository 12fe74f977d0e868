"""Looks up the addresses that a name stands for."""

import socket
from collections.abc import Callable, Sequence

from fuseline.serve.listening.addresses import join_address

Resolver = Callable[[str, int], Sequence[str]]
"""Returns the addresses, each `IP:PORT`, of the servers that a name and a port stand for; raises `OSError` where it
can't be told. It may take its time: it is called in a thread."""


def resolved(host: str, port: int) -> list[str]:
    """Return the addresses of `host`, as the system's resolver orders them, each with `port`.

    They are of one family, that of the first one: a server with addresses of IPv4 and IPv6 would be two otherwise.
    Raises `OSError` where the name isn't known.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family = found[0][0]
    return list(dict.fromkeys(join_address(str(entry[4][0]), port) for entry in found if entry[0] == family))
