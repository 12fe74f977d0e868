"""Classification of image files over HTTP, as people type it; for programs of Fuseline, its own messages."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from starlette.requests import Request
from starlette.responses import Response

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelResponse, Prediction, Timing
from fuseline.serve.errors import ImageError, RequestError
from fuseline.serve.http.call_of_scope import call_of_scope
from fuseline.serve.http.classify_request import PARAMETERS, NamedImages, classify_request_of
from fuseline.serve.http.http_answers import JSON_TYPE, compact_json, error_answer, json_answer
from fuseline.serve.http.http_services import HttpServices, classify_of, status_now
from fuseline.serve.http.message_json import members_of
from fuseline.serve.http.operations import Operation, Parameter, answered_by
from fuseline.serve.http.schemas import array_of, binary_content, json_content, object_schema, schema_of
from fuseline.serve.http.tensor_json import json_from_raw
from fuseline.serve.services.statuses import Status

METHOD = "http/classify"
"""Method that metrics count the requests under."""

PROTOBUF_TYPE = "application/x-protobuf"
"""Type of a body that is a ClassifyRequest, which is answered by a ClassifyResponse, as classify.proto has them."""


async def _classify(services: HttpServices, request: Request) -> Response:
    service = classify_of(services)
    content_type = request.headers.get("content-type", "")
    if content_type == PROTOBUF_TYPE:
        message = _message(await request.body(), request.path_params)
        answer = await service.classify(METHOD, message, call_of_scope(request.scope))
        if isinstance(answer, Status):
            return error_answer(status_now(services, answer))
        return Response(answer.SerializeToString(), media_type=PROTOBUF_TYPE)
    named = await classify_request_of(request, max_images=services.settings.max_images_per_request)
    answer = await service.classify(METHOD, named.request, call_of_scope(request.scope))
    if isinstance(answer, ClassifyResponse):
        return Response(_json(answer, named), media_type=JSON_TYPE)
    if answer.error_name == ImageError.__name__ and content_type == "application/x-www-form-urlencoded":
        hint = "curl needs --data-binary, as --data changes the bytes"
        answer = Status(answer.code, f"{answer.message}; {hint}", answer.error_name)
    return error_answer(status_now(services, answer))


async def _models(services: HttpServices, _request: Request) -> Response:
    service = classify_of(services)
    aliases = {"aliases": list(service.aliases)} if service.aliases else {}
    return json_answer({"models": service.model_names()} | aliases)


async def _model(services: HttpServices, request: Request) -> Response:
    in_path = request.path_params
    description = classify_of(services).describe(in_path["model"], in_path.get("version", ""))
    if request.headers.get("accept") == PROTOBUF_TYPE:
        return Response(description.SerializeToString(), media_type=PROTOBUF_TYPE)
    return json_answer(members_of(description))


def _message(body: bytes, in_path: Mapping[str, str]) -> ClassifyRequest:
    try:
        message = ClassifyRequest.FromString(body)
    except DecodeError as error:
        raise RequestError(f"the body is no ClassifyRequest of classify.proto, which {PROTOBUF_TYPE} says") from error
    if "model" in in_path:
        message.model = in_path["model"]
    if "version" in in_path:
        message.model_version = in_path["version"]
    return message


def _json(answer: ClassifyResponse, named: NamedImages) -> bytes:
    """Return the answer as JSON; its floats are the shortest that FP32 tells apart."""
    members: dict[str, Any] = {"model": answer.model, "model_version": answer.model_version}
    if answer.served_model:
        members["served_model"] = answer.served_model
    if answer.id:
        members["id"] = answer.id
    results = ",".join(
        _result(result, filename) for result, filename in zip(answer.results, named.filenames, strict=True)
    )
    timing = compact_json(members_of(answer.timing))
    return f'{compact_json(members)[:-1]},"results":[{results}],"timing":{timing}}}'.encode()


def _result(result: Any, filename: str | None) -> str:
    probabilities = json.loads(
        json_from_raw("FP32", np.array([p.probability for p in result.predictions], "<f4").tobytes())
    )
    members: dict[str, Any] = {} if filename is None else {"filename": filename}
    members["predictions"] = [
        {"index": prediction.index, "label": prediction.label, "probability": probability}
        for prediction, probability in zip(result.predictions, probabilities, strict=True)
    ]
    logits = f',"logits":{json_from_raw("FP32", result.logits)}' if result.logits else ""
    return f"{compact_json(members)[:-1]}{logits}}}"


_QUERY = tuple(Parameter(name, schema, description) for name, (schema, description) in PARAMETERS.items())
_IMAGE = {"type": "string", "format": "binary"}

_ANSWER = object_schema(
    {
        "model": {"type": "string"},
        "model_version": {"type": "string"},
        "served_model": {"type": "string"},
        "id": {"type": "string"},
        "results": array_of(
            object_schema(
                {
                    "filename": {"type": "string"},
                    "predictions": array_of(schema_of(Prediction)),
                    "logits": array_of({"type": "number"}),
                },
                required=("predictions",),
            )
        ),
        "timing": schema_of(Timing),
    },
    required=("model", "model_version", "results", "timing"),
)

_TAKES: dict[str, Any] = (
    {media_type: {"schema": _IMAGE} for media_type in ("image/jpeg", "image/png", "image/webp", "*/*")}
    | {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in PARAMETERS.items()},
                "additionalProperties": _IMAGE,
            }
        }
    }
    | binary_content(PROTOBUF_TYPE)
)

OPERATIONS = (
    *(
        Operation(
            "POST",
            (path,),
            summary,
            answered_by(_classify),
            json_content(_ANSWER) | binary_content(PROTOBUF_TYPE),
            _TAKES,
            parameters,
            infers=True,
        )
        for path, summary, parameters in (
            ("/v1/classify", "Classify images by the model that is named, or the only one.", _QUERY),
            ("/v1/models/{model}/classify", "Classify images by this model.", _QUERY[1:]),
            (
                "/v1/models/{model}/versions/{version}/classify",
                "Classify images by this version of the model.",
                _QUERY[2:],
            ),
        )
    ),
    Operation(
        "GET",
        ("/v1/models",),
        "Names of the served models.",
        answered_by(_models),
        json_content(
            object_schema(
                {"models": array_of({"type": "string"}), "aliases": array_of({"type": "string"})}, required=("models",)
            )
        ),
    ),
    Operation(
        "GET",
        ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"),
        "Description of a model and of the server's limits.",
        answered_by(_model),
        json_content(schema_of(GetModelResponse)) | binary_content(PROTOBUF_TYPE),
    ),
)
