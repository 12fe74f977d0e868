"""Bytes on a connection to the HTTP port: heads, bodies in chunks, several requests at once."""

import gzip
import http.client
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress

from tests.fakes.colours import encoded, noise
from tests.fuzz.servers import TOKENS
from tests.fuzz.target import Target

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [A-Za-z -]+\r\n")
"""Begin of an answer: whatever an answer repeats of a request is in JSON, which has no line ends."""
_REFUSALS = {501, 504, 505}
"""Statuses above 500 that say something of the request: of its transfer encoding, its own deadline, its version."""
_LAST = b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""Ends a head that is open, and has the server close the connection if what came before is whole."""
_QUIET_S = 0.05


def _bytes_of(http_address: str) -> Callable[[bytes], None]:
    host, _, port = http_address.rpartition(":")

    def run(data: bytes) -> None:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            with suppress(ConnectionError):
                connection.sendall(data + _LAST)
            answers = _answers(connection)
        statuses = [int(found) for found in _STATUS.findall(answers)]
        assert all(status < 500 or status in _REFUSALS for status in statuses), (statuses, answers[-1000:])
        assert bool(answers) == bool(statuses), answers[:1000]
        _check_goes_on(http_address)

    return run


def _answers(connection: socket.socket) -> bytes:
    """What comes until the server closes, or says no more: the rest of a body may never come."""
    parts = []
    connection.settimeout(_QUIET_S)
    with suppress(ConnectionError, TimeoutError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def _check_goes_on(http_address: str) -> None:
    connection = http.client.HTTPConnection(http_address, timeout=20)
    try:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"alive\n"
    finally:
        connection.close()


def _request(start: str, *fields: str, body: bytes | None = None) -> bytes:
    lengths = () if body is None else (f"Content-Length: {len(body)}",)
    return "\r\n".join((start, "Host: a", *fields, *lengths, "", "")).encode() + (body or b"")


def _chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


_CLASSIFY = "POST /v1/models/colours/classify?top_k=2 HTTP/1.1"
_INFER = "POST /v2/models/colours/infer HTTP/1.1"
_CHUNKED = "Transfer-Encoding: chunked"


def _seeds() -> list[bytes]:
    picture = encoded(noise(1)[0])
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": noise(1).ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    ready = _request("GET /v2/health/ready HTTP/1.1")
    return [
        _request(_CLASSIFY, "X-Request-Id: a-1", "Priority: bulk", "Timeout-Ms: 500", body=picture),
        _request(_CLASSIFY, _CHUNKED) + _chunked(picture, 50),
        _request(_CLASSIFY, _CHUNKED, "Trailer: X") + _chunked(picture, 500)[:-2] + b"X: y\r\n\r\n",
        _request(_INFER, "Content-Type: application/json", "Expect: 100-continue", body=body),
        _request(_INFER, "Content-Encoding: gzip", body=gzip.compress(body, mtime=0)),
        _request(_INFER, "Content-Encoding: deflate, gzip", _CHUNKED) + _chunked(gzip.compress(body, mtime=0), 100),
        _request(_INFER, "Inference-Header-Content-Length: 10", body=body),
        _request("GET /v2/models/colours HTTP/1.1") * 5 + ready + _request("HEAD / HTTP/1.1"),
        _request("GET / HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"),
        _request("GET /metrics HTTP/1.0", "Accept: application/openmetrics-text; version=1.0.0, */*;q=0.1"),
        _request("GET http://a:80/v2/models/c%6flours/versions/1/config?a=b#c HTTP/1.1", "Connection: keep-alive"),
        _request("OPTIONS * HTTP/1.1") + _request("CONNECT a:80 HTTP/1.1"),
        _request("PUT /v2/models/colours/infer HTTP/1.1", body=b"{}") + ready,
        b"\r\n\r\n" + ready,
    ]


def connections(http_address: str) -> Target:
    """Return the target of a server that asks nobody for a token."""
    return Target(_bytes_of(http_address), _seeds)


def guarded_connections(http_address: str) -> Target:
    """Return that of one that knows `TOKENS`, and traces."""
    picture = encoded(noise(1)[0])
    trace = (
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=b,c@d=e",
        "baggage: a=b;c",
    )
    bearer = {role: f"Authorization: Bearer {token}" for role, token in TOKENS.items()}
    return Target(
        _bytes_of(http_address),
        lambda: [
            _request(_CLASSIFY, bearer["infer"], *trace, "X-Request-Id: 4", "X-Priority: 2", body=picture),
            _request(_CLASSIFY, *trace, bearer["infer"], _CHUNKED) + _chunked(picture, 100),
            _request("GET /v2/logging HTTP/1.1", bearer["admin"]) + _request("GET / HTTP/1.1", bearer["infer"]),
            _request("POST /v2/logging HTTP/1.1", bearer["infer"], body=b"{}"),
            _request("GET /v1/models HTTP/1.1", bearer["infer"], bearer["admin"]),
            _request("GET /v2 HTTP/1.1", "Authorization: Basic YTpi") + _request("GET /v2/health/live HTTP/1.1"),
        ],
    )
