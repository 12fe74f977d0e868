"""POST …/infer: the Open Inference Protocol's inference over HTTP."""

import asyncio
import gzip
import zlib
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.protos.open_inference_pb2 import ModelInferRequest
from fuseline.serve.errors import RequestError
from fuseline.serve.http.call_of_scope import REQUEST_ID, call_of_scope
from fuseline.serve.http.http_answers import error_answer, refusal
from fuseline.serve.http.http_services import HttpServices, open_inference_of, status_now
from fuseline.serve.http.infer_request import (
    BinaryOutputs,
    infer_request_from_body,
    infer_request_from_raw,
)
from fuseline.serve.http.infer_response import body_from_infer_response
from fuseline.serve.http.json_text import shortened
from fuseline.serve.services.open_inference import OpenInferenceService
from fuseline.serve.services.statuses import Status, status_from_error

METHOD = "http/infer"
"""Method that metrics count the requests under."""

HEADER_LENGTH = b"inference-header-content-length"

_LEAST_COMPRESSED_BYTES = 1024
_COMPRESSED_IN_PLACE_BYTES = 64 * 1024
_COMPRESS = {"gzip": lambda body: gzip.compress(body, 1, mtime=0), "deflate": lambda body: zlib.compress(body, 1)}

_RAW_LENGTH = 0
"""Length of the JSON by which a client says that the body is nothing but the elements of the only input."""


def infer_application(services: HttpServices) -> ASGIApp:
    """Return the application that answers infer requests.

    It reads the request and writes the answer by ASGI's own messages: starlette's objects for them would cost more
    than all the rest.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            service = open_inference_of(services)
            # The connection has the whole body by now, and hands it out in one message.
            body = (await receive())["body"]
            header_length, accepted = _headers(scope["headers"])
            request, binary = _request(service, scope["path_params"], body, header_length)
            # Of a large body there is a second copy in the request.
            del body
            response = await service.infer(METHOD, request, call_of_scope(scope))
        except HTTPException as error:
            await refusal(error.status_code, error.detail)(scope, receive, send)
            return
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged, and is INTERNAL
            response = status_from_error(error, scope.get(REQUEST_ID, ""))
        if isinstance(response, Status):
            await error_answer(status_now(services, response))(scope, receive, send)
            return
        answer, json_length = body_from_infer_response(response, binary)
        headers = [(b"content-type", b"application/json" if json_length is None else b"application/octet-stream")]
        if json_length is not None:
            headers.append((HEADER_LENGTH, b"%d" % json_length))
        if accepted and (coding := _coding(accepted, len(answer), is_binary=json_length is not None)):
            answer = await _compressed(answer, coding)
            headers.append((b"content-encoding", coding.encode()))
        headers.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return application


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int | None, str]:
    """Return the length of the JSON, None where it is not told, and the accepted codings of the answer."""
    length: int | None = None
    accepted = ""
    for name, value in headers:
        if name == HEADER_LENGTH:
            # int() takes signs, spaces and underscores too.
            if not value.isdigit() or len(value) > 18 or length is not None:
                raise RequestError(
                    f"Inference-Header-Content-Length is {shortened(value)}; expected one length in bytes"
                )
            length = int(value)
        elif name == b"accept-encoding":
            accepted = value.decode("latin-1")
    return length, accepted


def _request(
    service: OpenInferenceService, path: dict[str, str], body: bytes | bytearray, header_length: int | None
) -> tuple[ModelInferRequest, BinaryOutputs]:
    model, version = path["model"], path.get("version", "")
    if header_length == _RAW_LENGTH:
        return infer_request_from_raw(body, service.metadata(model, version), version), BinaryOutputs(by_default=True)
    return infer_request_from_body(body, header_length, model=model, version=version)


def _coding(accepted: str, size: int, *, is_binary: bool) -> str | None:
    """Return the coding by which an answer of `size` bytes is compressed for a client that takes those `accepted`.

    Binary logits hardly shrink, so they are compressed only for a client that names one coding and no other, as one
    does that was told to; libraries name all that they know by themselves.
    """
    codings = [coding.strip().lower() for coding in accepted.split(",")]
    if size < _LEAST_COMPRESSED_BYTES or (is_binary and len(codings) > 1):
        return None
    return next((coding for coding in _COMPRESS if coding in codings), None)


async def _compressed(body: bytes, coding: str) -> bytes:
    if len(body) <= _COMPRESSED_IN_PLACE_BYTES:
        return _COMPRESS[coding](body)
    return await asyncio.to_thread(_COMPRESS[coding], body)
