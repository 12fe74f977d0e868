"""Bounds of what clients can take of an HTTP server."""

import resource
from dataclasses import dataclass

_MOST_CONNECTIONS = 1024
_LEAST_TOTAL_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds for the clients of one process. Times are kept to within two of `sweep_s`, and never shortened."""

    max_body_bytes: int = 64 * 2**20
    """Largest body of a request, also after its decompression."""
    max_total_bytes: int = 4 * 64 * 2**20
    """Most bytes of all connections together: bodies until they are answered, and answers until they are sent."""
    max_head_bytes: int = 32 * 2**10
    """Largest head of a request, request line and all header fields together, and largest trailer or extension of a
    chunked body. It is kept to within 16 KiB."""
    max_connections: int = _MOST_CONNECTIONS
    head_s: float = 10.0
    """Longest time for a whole head, from its first byte, or, on a new connection, from the connection's begin."""
    body_s: float = 60.0
    """Longest time for a whole body, from the end of its head."""
    answer_s: float = 30.0
    """Longest time for which a client may leave bytes of answers unread."""
    idle_s: float = 75.0
    """Longest time between an answer and the first byte of the next request on a connection."""
    linger_s: float = 2.0
    """Longest time for which a refused request is still read, and thrown away, so that its client reads the refusal
    rather than an error of its socket."""
    sweep_s: float = 1.0
    """Seconds between two looks at the open connections: no request has a timer of its own."""


def http_limits(max_message_bytes: int) -> HttpLimits:
    """Return the limits of a process whose largest request has `max_message_bytes`, the same as over gRPC.

    The total is four such requests, at least 256 MiB: as many pictures of 224x224 pixels as queues hold by default, and
    half as many again. Connections are at most half of the files that the process may open, which gRPC needs too.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HttpLimits(
        max_body_bytes=max_message_bytes,
        max_total_bytes=max(4 * max_message_bytes, _LEAST_TOTAL_BYTES),
        max_connections=_MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files // 2),
    )
