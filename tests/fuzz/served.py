"""Targets that a real server reads: protobuf messages at both services, and bodies over HTTP."""

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from fuseline.protos import open_inference_pb2 as protocol
from fuseline.serve.services.statuses import HTTP_STATUS_OF_CODE
from tests.fakes.colours import encoded, noise
from tests.fuzz.odd_values import with_odd_values
from tests.fuzz.target import Target
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

CLIENTS_ERRORS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
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


def _infer_request() -> dict[str, Any]:
    pixels = noise(1)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}]
    return {"id": "a", "inputs": [tensor], "outputs": outputs, "parameters": {"priority": 1, "timeout": 10_000}}


def _binary() -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "parameters": {"binary_data_size": 192}}
    return json.dumps({"inputs": [tensor]}).encode().ljust(140) + noise(1).tobytes()


def _first_line_chooses(runs: Mapping[bytes, Callable[[bytes], None]]) -> Callable[[bytes], None]:
    """Return what gives all but the first line to the one that this line names, or to any where it names none."""
    names = list(runs)

    def run(data: bytes) -> None:
        name, _, rest = data.partition(b"\n")
        runs[name if name in runs else names[sum(name) % len(names)]](rest)

    return run


_MESSAGES = {
    "RepositoryModelLoad": protocol.RepositoryModelLoadRequest(
        model_name="tints", parameters={"config": protocol.ModelRepositoryParameter(string_param="{}")}
    ),
    "RepositoryModelUnload": protocol.RepositoryModelUnloadRequest(
        model_name="none", parameters={"unload_dependents": protocol.ModelRepositoryParameter(bool_param=True)}
    ),
    "RepositoryIndex": protocol.RepositoryIndexRequest(ready=True),
    "LogSettings": protocol.LogSettingsRequest(
        settings={
            "log_verbose_level": protocol.LogSettingsRequest.SettingValue(uint32_param=1),
            "log_format": protocol.LogSettingsRequest.SettingValue(string_param="ISO8601"),
            "log_warning": protocol.LogSettingsRequest.SettingValue(bool_param=False),
        }
    ),
    "TraceSetting": protocol.TraceSettingRequest(
        settings={"trace_level": protocol.TraceSettingRequest.SettingValue(value=["OFF"])}, model_name="colours"
    ),
    "SystemSharedMemoryRegister": protocol.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=64),
    "SystemSharedMemoryStatus": protocol.SystemSharedMemoryStatusRequest(name="a"),
    "SystemSharedMemoryUnregister": protocol.SystemSharedMemoryUnregisterRequest(name="a"),
    "CudaSharedMemoryRegister": protocol.CudaSharedMemoryRegisterRequest(name="a", raw_handle=bytes(64), byte_size=64),
    "CudaSharedMemoryStatus": protocol.CudaSharedMemoryStatusRequest(name="a"),
    "ModelConfig": protocol.ModelConfigRequest(name="colours", version="1"),
    "ModelMetadata": protocol.ModelMetadataRequest(name="colours", version="1"),
    "ModelReady": protocol.ModelReadyRequest(name="colours", version="1"),
    "ModelStatistics": protocol.ModelStatisticsRequest(name="colours", version="1"),
}
"""Every method of the Open Inference Protocol beside inference, by its name, and a message for it."""

_BODIES = {
    "/v2/repository/index": [{"ready": True}],
    "/v2/repository/models/tints/load": [{}, {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}],
    "/v2/repository/models/none/unload": [{"parameters": {"unload_dependents": True}}],
    "/v2/systemsharedmemory/region/a/register": [{"key": "/a", "offset": 0, "byte_size": 64}],
    "/v2/systemsharedmemory/unregister": [{}],
    "/v2/cudasharedmemory/region/a/register": [{"raw_handle": {"b64": "A" * 88}, "device_id": 0, "byte_size": 64}],
    "/v2/logging": [{"log_verbose_level": 1, "log_format": "ISO8601", "log_info": True}],
    "/v2/trace/setting": [{"trace_level": ["OFF"], "trace_rate": "1000"}],
    "/v2/models/colours/trace/setting": [{"trace_level": None}],
}
"""Every path that takes JSON beside inference, and bodies for it."""


def control_messages(channel: grpc.Channel) -> Target:
    return Target(
        _first_line_chooses(
            {name.encode(): _call_of(channel, f"/inference.GRPCInferenceService/{name}") for name in _MESSAGES}
        ),
        lambda: [name.encode() + b"\n" + message.SerializeToString() for name, message in _MESSAGES.items()],
    )


def control_bodies(http_address: str) -> Target:
    return Target(
        _first_line_chooses({path.encode(): _post_of(http_address, path, _HEADERS["JSON"]) for path in _BODIES}),
        lambda: [
            f"{path}\n{json.dumps(body)}".encode()
            for path, sound in _BODIES.items()
            for its in sound
            for body in with_odd_values(its)
        ],
    )


def classify_messages(channel: grpc.Channel) -> Target:
    return Target(
        _call_of(channel, "/fuseline.v1.Classifier/Classify"),
        lambda: [raw_request(noise(2), top_k=2, id="a", model="colours").SerializeToString()],
    )


def inference_messages(channel: grpc.Channel) -> Target:
    return Target(
        _call_of(channel, "/inference.GRPCInferenceService/ModelInfer"),
        lambda: [
            infer_request(noise(2), id="a", model_name="colours").SerializeToString(),
            infer_request(noise(1), typed=True, model_name="colours").SerializeToString(),
        ],
    )


def pictures(http_address: str) -> Target:
    return Target(_post_of(http_address, _CLASSIFY, _HEADERS["picture"]), lambda: [encoded(noise(1)[0])])


def forms(http_address: str) -> Target:
    picture = encoded(noise(1)[0])
    return Target(
        _post_of(http_address, _CLASSIFY, _HEADERS["form"]),
        lambda: [_form(picture), _form(picture, picture), _form(b"")],
    )


def json_bodies(http_address: str) -> Target:
    return Target(
        _post_of(http_address, _INFER, _HEADERS["JSON"]),
        lambda: [json.dumps(its).encode() for its in with_odd_values(_infer_request())],
    )


def binary_bodies(http_address: str) -> Target:
    return Target(_post_of(http_address, _INFER, _HEADERS["binary"]), lambda: [_binary()])


_CLASSIFY, _INFER = "/v1/models/colours/classify", "/v2/models/colours/infer"
