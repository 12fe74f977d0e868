"""Reads the JSON of requests strictly: what two parsers could take for different things is refused."""

import json
import re
import reprlib
from http import HTTPStatus
from typing import Any, NoReturn

from starlette.exceptions import HTTPException

from fuseline.serve.errors import RequestError


def object_from_json(text: bytes, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        HTTPException: the text has more than `max_bytes`; it is not parsed.
        RequestError: text that is not UTF-8 or not JSON (RFC 8259), NaN and Infinity among it, another value than an
            object, a name given twice in one object, half a character (RFC 7493, 2.1), or nesting that is too deep to
            read.
    """
    if len(text) > max_bytes:
        raise HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request has {len(text)} bytes of JSON, at most {max_bytes} bytes of JSON are taken; send elements "
            "of tensors as binary data (Inference-Header-Content-Length, binary_data_size)",
        )
    try:
        value = _DECODER.decode(text.decode())
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the JSON is not UTF-8: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the JSON has half a character, \\u{ord(error.object[error.start]):04x}; a character beyond \\uffff is "
            "written as two halves, \\ud800 to \\udbff and then \\udc00 to \\udfff"
        ) from error
    except RecursionError as error:
        raise RequestError(
            "the JSON is nested too deep to be read; a tensor's data has one level a dimension"
        ) from error
    except ValueError as error:
        raise RequestError(f"the JSON can't be read: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"the JSON is {json_type(value)}; expected an object")
    return value


def json_type(value: object) -> str:
    """Return what JSON calls the type of a parsed `value`, with its article, for messages."""
    return _TYPE_NAMES[type(value)]


def shortened(value: object) -> str:
    """Return a client's words, shortened: a message is bounded."""
    return reprlib.repr(value)


_TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number with a fraction or exponent",
    bool: "a boolean",
    type(None): "null",
}


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) != len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(twice)} is given twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; send tensors with such elements as binary data")


_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""What the halves of a character are written as; two that belong together are read as one."""

_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
