"""Options of the gRPC server."""

from fuseline.serve.settings import Settings

SHORTEST_PING_INTERVAL_MS = 100
"""Shortest time in milliseconds between a client's keepalive pings. gRPC's clients in Go and Java ping every 10 s at
most, those in C++, Python and C# every second; the rest is for a network that delays one ping more than the next. One
costs 17 bytes each way."""

HANDSHAKE_TIMEOUT_MS = 10_000
"""Longest time in milliseconds until a new connection has shaken hands, as HTTP's connections have until the end of
their first head."""

_MAX_PENDING_CALLS = 2**31 - 1


def server_options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    """Return the options of a server; with `shares_port`, other processes listen on its TCP ports too."""
    return [
        # It bounds a compressed message twice: as it comes, and while it is decompressed, which ends at the bound.
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Of calls that wait to be taken up gRPC by default drops some at random from 1,000 on and all from 3,000 on,
        # with a bare CANCELLED that nobody counts and no client retries. Refusing is the batcher's task.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        # This bounds the calls' memory instead: a client's further calls wait on its own side.
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.most_connections),
        # Between the two gRPC would refuse some calls at random.
        ("grpc.max_metadata_size", settings.max_header_kb * 1024),
        ("grpc.absolute_max_metadata_size", settings.max_header_kb * 1024),
        # With SO_REUSEPORT a second server would share the port and take half of the first one's requests.
        ("grpc.so_reuseport", int(shares_port)),
        # By default gRPC takes a ping every 5 minutes while it sends nothing, every 2 hours while no call is open, and
        # ends the connection, with all its calls, at the third that comes earlier: so it takes an idle stream from a
        # client that guards it against a silent network. With this interval the third early ping still ends a flood.
        ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default a client that never finishes its handshake keeps its connection, and what TLS holds, for 2 minutes.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        *_keepalive(settings),
        *_connection_age(settings),
    ]


def _keepalive(settings: Settings) -> list[tuple[str, int]]:
    """Return the options that end connections whose client is gone without a word, as after a power cut."""
    if not settings.keepalive_s:
        return []
    return [
        ("grpc.keepalive_time_ms", int(1000 * settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", int(1000 * settings.keepalive_timeout_s)),
        # The answer to a ping has a time of its own, a minute by default, before which that one ends nothing.
        ("grpc.http2.ping_timeout_ms", int(1000 * settings.keepalive_timeout_s)),
        # By default gRPC stops asking a client that gets no data meanwhile.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _connection_age(settings: Settings) -> list[tuple[str, int]]:
    """Return the options that end old connections: GOAWAY, then what is under way is answered (RFC 9113, 6.8).

    gRPC varies each connection's age by a tenth, so that clients that came together don't all come back together.
    """
    if not settings.max_connection_age_s:
        return []
    return [
        ("grpc.max_connection_age_ms", int(1000 * settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", int(1000 * settings.max_connection_age_grace_s)),
    ]
