"""What clients do wrong leaves no line in the log, which they could fill: real servers, and bytes as they come."""

import http.client
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from fuseline.serve.client import Client
from tests.fakes.colours import plain
from tests.serve.http2_pings import pinging_connection
from tests.serve.processes import FAST, free_port, server_process

CLASSIFY = "/fuseline.v1.Classifier/Classify"
METADATA = {
    "x_no_utf8": b"\xff\xfe",
    "x_request_id": b"\xff\xfe",
    "x_bin": b"!!!",
    "grpc_timeout": b"nonsense",
    "grpc_encoding": b"nonsense",
}
FORM = "multipart/form-data; boundary=x"


def _same(data: bytes) -> bytes:
    return data


def call(address: str, method: str, data: bytes) -> grpc.StatusCode:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method, request_serializer=_same, response_deserializer=_same)(data, timeout=20)
    code: grpc.StatusCode = caught.value.code()
    return code


def post(address: str, content_type: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", "/v1/classify", body, {"Content-Type": content_type})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="one process"), pytest.param(("--workers", 2), id="workers", marks=pytest.mark.slow)],
)
def test_what_a_client_sends_wrong_leaves_no_line_in_the_log(package: Path, workers: Sequence[object]) -> None:
    with server_process(package, *FAST, *workers, "--http-port", free_port()) as server:
        assert server.http_address is not None
        assert call(server.address, CLASSIFY, b"\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
        assert call(server.address, "/no/method", b"") is grpc.StatusCode.UNIMPLEMENTED
        assert call(server.address, CLASSIFY, bytes(65 * 2**20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for key, value in METADATA.items():
            with pinging_connection(server.address) as connection:
                connection.open_call(CLASSIFY, **{key: value})
                connection.ping()
        for content_type, body in ((FORM, b"--xx"), (FORM, b"--x\r\n\r"), ("multipart/form-data", b"")):
            assert post(server.http_address, content_type, body) == 400
        with Client(server.address) as client:
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr
    assert [line for line in stderr.splitlines() if " INFO fuseline." not in line] == []
