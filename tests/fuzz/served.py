"""Targets that a real server reads: protobuf messages at both services, and bodies over HTTP."""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from fuseline.serve.services.statuses import HTTP_STATUS_OF_CODE
from tests.fakes.colours import encoded, noise
from tests.fuzz.targets import Target
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

CLIENTS_ERRORS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
CLIENTS_STATUSES = {HTTP_STATUS_OF_CODE[code] for code in CLIENTS_ERRORS if code is not grpc.StatusCode.OK}
"""Statuses that HTTP has for these: that of a deadline which the request itself has set is one, though it is a 5xx."""
BOUNDARY = "c3b7"
_HEADERS = {
    "picture": {"Content-Type": "application/octet-stream"},
    "form": {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    "JSON": {"Content-Type": "application/json"},
    "binary": {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "140"},
}


def _same(data: bytes) -> bytes:
    return data


def _call_of(channel: grpc.Channel, method: str) -> Callable[[bytes], None]:
    call = channel.unary_unary(method, request_serializer=_same, response_deserializer=_same)

    def run(data: bytes) -> None:
        its = call.future(data, timeout=20)
        code, details = its.code(), its.details() or ""
        assert code in CLIENTS_ERRORS, f"{code}: {details}"
        assert len(details) < 5000

    return run


def _post_of(address: str, path: str, headers: dict[str, str]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        connection = http.client.HTTPConnection(address, timeout=20)
        try:
            connection.request("POST", path, data, headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status < 500 or answer.status in CLIENTS_STATUSES, (answer.status, body[:500])
            assert answer.status == 200 or len(json.loads(body)["error"]) < 5000
        finally:
            connection.close()

    return run


def _form(*parts: bytes) -> bytes:
    begin = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    return b"".join(begin + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def _json() -> bytes:
    pixels = noise(1)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.tolist()}
    return json.dumps({"inputs": [tensor], "parameters": {"priority": 1, "timeout": 10_000}}).encode()


def _binary() -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "parameters": {"binary_data_size": 192}}
    return json.dumps({"inputs": [tensor]}).encode().ljust(140) + noise(1).tobytes()


@contextmanager
def served_targets(address: str, http_address: str) -> Iterator[dict[str, Target]]:
    """The targets of a server that listens on these addresses."""
    picture, infer = encoded(noise(1)[0]), "/v2/models/colours/infer"
    with grpc.insecure_channel(address) as channel:
        yield {
            "classify messages": Target(
                _call_of(channel, "/fuseline.v1.Classifier/Classify"),
                lambda: [raw_request(noise(2), top_k=2, id="a").SerializeToString()],
            ),
            "inference messages": Target(
                _call_of(channel, "/inference.GRPCInferenceService/ModelInfer"),
                lambda: [
                    infer_request(noise(2), id="a").SerializeToString(),
                    infer_request(noise(1), typed=True).SerializeToString(),
                ],
            ),
            "pictures over HTTP": Target(
                _post_of(http_address, "/v1/classify", _HEADERS["picture"]), lambda: [picture]
            ),
            "forms": Target(
                _post_of(http_address, "/v1/classify", _HEADERS["form"]),
                lambda: [_form(picture), _form(picture, picture), _form(b"")],
            ),
            "JSON over HTTP": Target(_post_of(http_address, infer, _HEADERS["JSON"]), lambda: [_json()]),
            "binary tensors over HTTP": Target(_post_of(http_address, infer, _HEADERS["binary"]), lambda: [_binary()]),
        }
