"""Bounds of what clients can take of an HTTP server."""

from dataclasses import dataclass

from fuseline.serve.settings import Settings

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
    age_s: float = 0.0
    """Time from a connection's begin after which an answer closes it; 0: none does."""
    sweep_s: float = 1.0
    """Seconds between two looks at the open connections: no request has a timer of its own."""


def http_limits(settings: Settings) -> HttpLimits:
    """Return the limits of a process with `settings`.

    A body is at most as large as a message over gRPC. The total is four such requests, at least 256 MiB: as many
    pictures of 224x224 pixels as queues hold by default, and half as many again. Connections are at most half of the
    files that the process may open, which gRPC needs too.
    """
    largest = settings.max_message_bytes
    most = settings.most_connections
    return HttpLimits(
        max_body_bytes=largest,
        max_total_bytes=max(4 * largest, _LEAST_TOTAL_BYTES),
        max_head_bytes=settings.max_header_kb * 2**10,
        max_connections=most if settings.max_connections is not None else min(_MOST_CONNECTIONS, most),
        age_s=settings.max_connection_age_s,
    )
