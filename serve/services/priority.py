"""The priority that a request asks for, in its message, in a call's metadata or in HTTP's headers."""

import reprlib
from collections.abc import Iterable

from fuseline.protos.open_inference_pb2 import ModelInferRequest
from fuseline.serve.batching.requests import BULK, INTERACTIVE
from fuseline.serve.errors import RequestError

PRIORITY_LEVELS = 2
"""Number of levels; 1 goes first, and is the default."""

HEADERS = ("priority", "x-priority")
"""Names of gRPC's metadata and of HTTP's headers that tell the priority of all requests of a call."""

_LEVELS = {"interactive": INTERACTIVE, "1": INTERACTIVE, "bulk": BULK, "2": BULK}


def priority_from_text(text: str) -> int:
    """Return the level that `text` names. Raises `RequestError` if it names none."""
    level = _LEVELS.get(text)
    if level is None:
        raise RequestError(f"the priority is {reprlib.repr(text)}; expected {', '.join(_LEVELS)}")
    return level


def priority_text(headers: Iterable[tuple[str, str | bytes]]) -> str:
    """Return what `headers`, whose names are in lower case, say of the priority, for `priority_from_text`; else "".

    HTTP has a header of the same name, in which browsers send `u=1, i` and the like (RFC 9218): it is about the order
    of answers on one connection, and no concern of ours.
    """
    for name, value in headers:
        if name in HEADERS:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if "=" not in text and text not in {"", "i"}:
                return text
    return ""


def priority_parameter(request: ModelInferRequest) -> int:
    """Return the level that the parameter `priority` asks for; 0 where it is absent.

    As in Triton, 1 goes first, and 0 and what is above the number of levels stand for the default. 0 too where
    `check_request_parameters` refuses the parameter.
    """
    if "priority" not in request.parameters:
        return 0
    parameter = request.parameters["priority"]
    level = parameter.uint64_param or parameter.int64_param
    return level if 1 <= level <= PRIORITY_LEVELS else INTERACTIVE
