"""The OpenAPI document of the HTTP port, made of the table of its operations."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from fuseline.serve.http.operations import Operation
from fuseline.serve.http.schemas import ERROR, INFER_REQUEST, INFER_RESPONSE, json_content

_CONVERTOR = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERROR_STATUSES = {
    "400": "The request is wrong, and the message says what to do.",
    "404": "There is no such model or version.",
    "429": "There is no room; Retry-After says when there is likely to be.",
    "500": "The server failed on this request.",
    "503": "The server takes no requests at the moment.",
    "504": "The answer can't be there, or isn't, in time.",
}


def openapi_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of `operations`."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        for path in operation.paths:
            item = paths.setdefault(documented_path(path), {})
            item[operation.method.lower()] = _described(operation, _CONVERTOR.findall(path))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fuseline",
            "version": version("fuseline"),
            "description": "Classification of images by batching ResNets, and the Open Inference Protocol.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR, "InferRequest": INFER_REQUEST, "InferResponse": INFER_RESPONSE},
            "responses": {
                status: {
                    "description": description,
                    "content": json_content({"$ref": "#/components/schemas/Error"}),
                }
                for status, description in _ERROR_STATUSES.items()
            },
        },
    }


def documented_path(path: str) -> str:
    """Return a path of a route as OpenAPI writes it."""
    return _CONVERTOR.sub(r"{\1}", path)


def _described(operation: Operation, names: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if operation.answers:
        answer["content"] = operation.answers
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        + [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": False,
                "schema": parameter.schema,
                "description": parameter.description,
            }
            for parameter in operation.parameters
        ],
        "responses": {"200": answer}
        | {status: {"$ref": f"#/components/responses/{status}"} for status in _ERROR_STATUSES},
    }
    if operation.takes is not None:
        described["requestBody"] = {"required": operation.needs_body, "content": operation.takes}
    return described
