"""The Open Inference Protocol over HTTP (KServe's v2 REST), with Triton's extensions."""

import base64
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fuseline.protos.open_inference_pb2 import (
    CudaSharedMemoryStatusResponse,
    ModelConfig,
    ModelMetadataResponse,
    ModelStatisticsResponse,
    RepositoryIndexResponse,
    ServerMetadataResponse,
    SystemSharedMemoryStatusResponse,
)
from fuseline.serve.errors import RequestError
from fuseline.serve.http.http_answers import CLOSE, json_answer
from fuseline.serve.http.http_services import HttpServices, open_inference_of
from fuseline.serve.http.infer_endpoint import infer_application
from fuseline.serve.http.json_text import json_type, object_from_json, shortened
from fuseline.serve.http.message_json import members_of
from fuseline.serve.http.operations import Operation, Parameter, answered_by
from fuseline.serve.http.schemas import array_of, binary_content, json_content, object_schema, schema_of
from fuseline.serve.services.open_inference_settings import LogValue

BINARY_EXTENSION = "binary_tensor_data"
"""Triton's extension of the protocol that HTTP alone needs."""

_MAX_JSON_BYTES = 2**20
"""Most JSON of a request but for inference."""

_MAX_LOAD_BYTES = 2**26
"""Most JSON of a request to load a model, which may have files that would override the package's: refused by name."""


async def _server_metadata(services: HttpServices, _request: Request) -> Response:
    members = members_of(open_inference_of(services).server_metadata())
    return json_answer(members | {"extensions": [*members["extensions"], BINARY_EXTENSION]})


async def _live(services: HttpServices, _request: Request) -> Response:
    live = services.is_live()
    return json_answer({"live": live}, HTTPStatus.OK if live else HTTPStatus.SERVICE_UNAVAILABLE, CLOSE)


async def _ready(services: HttpServices, _request: Request) -> Response:
    return _readiness({}, is_ready=services.is_ready(), headers=CLOSE)


async def _model_ready(services: HttpServices, request: Request) -> Response:
    service = open_inference_of(services)
    # Raises where there is no such model.
    described = service.metadata(*_model(request))
    return _readiness({"name": described.name}, is_ready=service.model_ready(*_model(request)))


async def _metadata(services: HttpServices, request: Request) -> Response:
    return json_answer(members_of(open_inference_of(services).metadata(*_model(request))))


async def _config(services: HttpServices, request: Request) -> Response:
    return json_answer(members_of(open_inference_of(services).config(*_model(request))))


async def _statistics(services: HttpServices, request: Request) -> Response:
    return json_answer(members_of(await open_inference_of(services).statistics(*_model(request))))


async def _index(services: HttpServices, request: Request) -> Response:
    ready = _flag(await _members(request), "ready")
    return json_answer(members_of(await open_inference_of(services).index(ready=ready))["models"])


async def _load(services: HttpServices, request: Request) -> Response:
    parameters = _parameters(await _members(request, _MAX_LOAD_BYTES))
    await open_inference_of(services).load(_repository(request), request.path_params["model"], parameters)
    return Response()


async def _unload(services: HttpServices, request: Request) -> Response:
    dependents = _flag(_parameters(await _members(request)), "unload_dependents")
    model = request.path_params["model"]
    await open_inference_of(services).unload(_repository(request), model, unload_dependents=dependents)
    return Response()


async def _system_status(services: HttpServices, request: Request) -> Response:
    return _regions(open_inference_of(services).system_shared_memory_status(_region(request)))


async def _system_register(services: HttpServices, request: Request) -> Response:
    members = await _members(request)
    key = _text(members, "key")
    sizes = _size(members, "offset", 0), _size(members, "byte_size", None)
    await open_inference_of(services).system_shared_memory_register(_region(request), key, *sizes)
    return Response()


async def _system_unregister(services: HttpServices, request: Request) -> Response:
    await open_inference_of(services).system_shared_memory_unregister(_region(request))
    return Response()


async def _cuda_status(services: HttpServices, request: Request) -> Response:
    return _regions(open_inference_of(services).cuda_shared_memory_status(_region(request)))


async def _cuda_register(services: HttpServices, request: Request) -> Response:
    members = await _members(request)
    handle = members.get("raw_handle")
    if type(handle) is not dict:
        raise RequestError("'raw_handle' is missing or no object; expected {\"b64\": the handle in base64}")
    try:
        raw_handle = base64.b64decode(_text(handle, "b64"), validate=True)
    except ValueError as error:  # of characters beyond ASCII, too, which is no binascii.Error
        raise RequestError(f"'raw_handle' is no base64: {error}") from error
    sizes = _size(members, "device_id", None), _size(members, "byte_size", None)
    await open_inference_of(services).cuda_shared_memory_register(_region(request), raw_handle, *sizes)
    return Response()


async def _cuda_unregister(services: HttpServices, request: Request) -> Response:
    await open_inference_of(services).cuda_shared_memory_unregister(_region(request))
    return Response()


async def _trace_settings(services: HttpServices, request: Request) -> Response:
    asked: dict[str, list[str]] = {}
    for name, value in (await _members(request)).items():
        values = [] if value is None else value if type(value) is list else [value]
        if not all(type(item) in {str, int, bool} for item in values):
            raise RequestError(
                f"the trace setting {shortened(name)} is {shortened(value)}; expected text, or a list of it"
            )
        asked[name] = list(map(str, values))
    settings = open_inference_of(services).trace_settings(request.path_params.get("model", ""), asked)
    # Triton has one text for each of these but the levels, which are a list.
    return json_answer(
        {name: values if name == "trace_level" or len(values) != 1 else values[0] for name, values in settings.items()}
    )


async def _log_settings(services: HttpServices, request: Request) -> Response:
    asked: dict[str, LogValue | None] = {}
    for name, value in (await _members(request)).items():
        if not isinstance(value, bool | int | str):
            raise RequestError(
                f"the log setting {shortened(name)} is {shortened(value)}; expected a boolean, text, or an integer"
            )
        asked[name] = value
    return json_answer(open_inference_of(services).log_settings(asked))


def _model(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _region(request: Request) -> str:
    name: str = request.path_params.get("region", "")
    return name


def _readiness(members: dict[str, Any], *, is_ready: bool, headers: Mapping[str, str] | None = None) -> Response:
    """Tell it by the status, which Triton's clients look at, and in the body, which KServe's do."""
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return json_answer(members | {"ready": is_ready}, status, headers)


def _regions(answer: SystemSharedMemoryStatusResponse | CudaSharedMemoryStatusResponse) -> Response:
    return json_answer([members_of(answer.regions[name]) for name in sorted(answer.regions)])


async def _members(request: Request, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object that the request's body is; an empty body is an empty one."""
    body = await request.body()
    return object_from_json(body, max_bytes) if body else {}


def _parameters(members: dict[str, Any]) -> dict[str, Any]:
    parameters = members.get("parameters", {})
    if type(parameters) is not dict:
        raise RequestError(f"'parameters' is {json_type(parameters)}; expected an object")
    return parameters


def _repository(request: Request) -> str:
    name: str = request.path_params.get("repository", "")
    return name


def _flag(members: dict[str, Any], name: str) -> bool:
    value = members.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"{name!r} is {json_type(value)}; expected a boolean")
    return value


def _text(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    if type(value) is not str:
        raise RequestError(f"{name!r} is {'missing' if name not in members else json_type(value)}; expected a string")
    return value


def _size(members: dict[str, Any], name: str, default: int | None) -> int:
    value = members.get(name, default)
    if type(value) is not int or value not in range(2**64):
        came = "missing" if name not in members else shortened(value)
        raise RequestError(f"{name!r} is {came}; expected an integer of 64 bits from 0")
    return value


def _of_models(suffix: str) -> tuple[str, str]:
    return f"/v2/models/{{model}}{suffix}", f"/v2/models/{{model}}/versions/{{version}}{suffix}"


_HEADER_LENGTH = Parameter(
    "Inference-Header-Content-Length",
    {"type": "integer", "minimum": 0},
    "Length of the JSON, which binary tensors follow; absent: the body is JSON; 0: it is the only input's elements.",
    "header",
)
_NO_CONTENT: dict[str, Any] = {}
_SETTINGS = json_content({"type": "object"})

OPERATIONS = (
    Operation(
        "POST",
        _of_models("/infer"),
        "Compute the logits of images.",
        infer_application,
        json_content({"$ref": "#/components/schemas/InferResponse"}) | binary_content(),
        json_content({"$ref": "#/components/schemas/InferRequest"}) | binary_content(),
        (_HEADER_LENGTH,),
        infers=True,
    ),
    Operation(
        "GET",
        ("/v2",),
        "Name, version and extensions of the server.",
        answered_by(_server_metadata),
        json_content(schema_of(ServerMetadataResponse)),
    ),
    Operation(
        "GET",
        ("/v2/health/live",),
        "Whether the server lives.",
        answered_by(_live),
        json_content(object_schema({"live": {"type": "boolean"}}, required=("live",))),
    ),
    Operation(
        "GET",
        ("/v2/health/ready",),
        "Whether requests are taken.",
        answered_by(_ready),
        json_content(object_schema({"ready": {"type": "boolean"}}, required=("ready",))),
    ),
    # Before the paths of models, as a model could be called `stats`.
    Operation(
        "GET",
        ("/v2/models/stats", *_of_models("/stats")),
        "Statistics of all models or of one.",
        answered_by(_statistics),
        json_content(schema_of(ModelStatisticsResponse)),
    ),
    Operation(
        "GET",
        _of_models(""),
        "Tensors of a model.",
        answered_by(_metadata),
        json_content(schema_of(ModelMetadataResponse)),
    ),
    Operation(
        "GET",
        _of_models("/ready"),
        "Whether a model takes requests.",
        answered_by(_model_ready),
        json_content(
            object_schema({"name": {"type": "string"}, "ready": {"type": "boolean"}}, required=("name", "ready"))
        ),
    ),
    Operation(
        "GET",
        _of_models("/config"),
        "Configuration of a model.",
        answered_by(_config),
        json_content(schema_of(ModelConfig)),
    ),
    *(
        Operation(
            "POST",
            (f"/v2/repository/models/{{model}}/{verb}", f"/v2/repository/{{repository}}/models/{{model}}/{verb}"),
            summary,
            answered_by(handler),
            _NO_CONTENT,
            json_content(object_schema({"parameters": object_schema(parameters)})),
            needs_body=False,
        )
        for verb, summary, handler, parameters in (
            ("load", "Load a model, or what its folder has now.", _load, _NO_CONTENT),
            ("unload", "Unload a model.", _unload, {"unload_dependents": {"type": "boolean"}}),
        )
    ),
    Operation(
        "POST",
        ("/v2/repository/index", "/v2/repository/{repository}/index"),
        "Every version that is known of the models, and its state.",
        answered_by(_index),
        json_content(array_of(schema_of(RepositoryIndexResponse.ModelIndex))),
        json_content(object_schema({"ready": {"type": "boolean"}})),
        needs_body=False,
    ),
    Operation(
        "GET",
        ("/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/{region:path}/status"),
        "Registered regions of system shared memory.",
        answered_by(_system_status),
        json_content(array_of(schema_of(SystemSharedMemoryStatusResponse.RegionStatus))),
    ),
    Operation(
        "POST",
        ("/v2/systemsharedmemory/region/{region:path}/register",),
        "Register a region of system shared memory.",
        answered_by(_system_register),
        _NO_CONTENT,
        json_content(
            object_schema(
                {
                    "key": {"type": "string"},
                    "offset": {"type": "integer", "minimum": 0, "default": 0},
                    "byte_size": {"type": "integer", "minimum": 0},
                },
                required=("key", "byte_size"),
            )
        ),
    ),
    Operation(
        "POST",
        ("/v2/systemsharedmemory/unregister", "/v2/systemsharedmemory/region/{region:path}/unregister"),
        "Unregister a region of system shared memory, or all.",
        answered_by(_system_unregister),
        _NO_CONTENT,
    ),
    Operation(
        "GET",
        ("/v2/cudasharedmemory/status", "/v2/cudasharedmemory/region/{region:path}/status"),
        "Registered regions of CUDA shared memory.",
        answered_by(_cuda_status),
        json_content(array_of(schema_of(CudaSharedMemoryStatusResponse.RegionStatus))),
    ),
    Operation(
        "POST",
        ("/v2/cudasharedmemory/region/{region:path}/register",),
        "Register a region of CUDA shared memory.",
        answered_by(_cuda_register),
        _NO_CONTENT,
        json_content(
            object_schema(
                {
                    "raw_handle": object_schema(
                        {"b64": {"type": "string", "contentEncoding": "base64"}}, required=("b64",)
                    ),
                    "device_id": {"type": "integer", "minimum": 0},
                    "byte_size": {"type": "integer", "minimum": 0},
                },
                required=("raw_handle", "device_id", "byte_size"),
            )
        ),
    ),
    Operation(
        "POST",
        ("/v2/cudasharedmemory/unregister", "/v2/cudasharedmemory/region/{region:path}/unregister"),
        "Unregister a region of CUDA shared memory, or all.",
        answered_by(_cuda_unregister),
        _NO_CONTENT,
    ),
    *(
        Operation(
            method,
            ("/v2/trace/setting", "/v2/models/{model}/trace/setting"),
            f"{verb} the trace settings.",
            answered_by(_trace_settings),
            _SETTINGS,
            takes,
            needs_body=False,
        )
        for method, verb, takes in (("GET", "Read", None), ("POST", "Change", _SETTINGS))
    ),
    *(
        Operation(
            method,
            ("/v2/logging",),
            f"{verb} the log settings.",
            answered_by(_log_settings),
            _SETTINGS,
            takes,
            needs_body=False,
        )
        for method, verb, takes in (("GET", "Read", None), ("POST", "Change", _SETTINGS))
    ),
)
"""What is served of the protocol. Inference is first, as it is looked for first."""
