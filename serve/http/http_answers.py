"""Answers over HTTP: JSON, and errors as `{"error": message}` with the status of the one table."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from fuseline.serve.services.statuses import ERROR_METADATA_KEY, Status

RETRY_AFTER_MS_HEADER = "retry-after-ms"
"""Header with the milliseconds after which there is likely to be room; Retry-After has whole seconds only."""

JSON_TYPE = "application/json"

BEARER = "Bearer"
"""Value of the header WWW-Authenticate, which goes with 401 (RFC 9110, 11.6.1)."""

CLOSE = {"Connection": "close"}
"""Header of answers to probes: each gets a connection of its own, so that it finds whichever thread or process can
answer it."""


def json_answer(value: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer whose body is `value` as JSON."""
    return Response(json_bytes(value), status, headers, JSON_TYPE)


def json_bytes(value: object) -> bytes:
    """Return `value`, whose numbers are finite, as JSON."""
    return _ENCODER.encode(value).encode()


def error_answer(status: Status) -> Response:
    """Return the answer that tells a client about an error.

    Its headers have what gRPC's trailing metadata have: the error's class, from which a client makes an error of the
    same class, and when there is likely to be room.
    """
    headers = {ERROR_METADATA_KEY: status.error_name}
    if status.http_status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = BEARER
    if status.retry_after_s is not None:
        headers |= {
            "retry-after": str(math.ceil(status.retry_after_s) or 1),
            RETRY_AFTER_MS_HEADER: str(status.retry_after_ms),
        }
    return json_answer({"error": status.message}, status.http_status, headers)


def refusal(status: int, message: str, **headers: str) -> Response:
    """Return the answer to a request that HTTP itself refuses, before any service."""
    return json_answer({"error": message}, status, headers)


def compact_json(value: Any) -> str:
    """Return `value` as JSON text without spaces."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
