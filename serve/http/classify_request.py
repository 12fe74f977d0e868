"""Makes ClassifyRequest of a POST: an image as the body, or files of a form, asked about by query parameters."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.serve.errors import RequestError
from fuseline.serve.http.json_text import shortened

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096

_UINT32_DIGITS = 10


@dataclass(frozen=True, slots=True)
class NamedImages:
    """A request, and what its client calls the images."""

    request: ClassifyRequest
    filenames: tuple[str | None, ...]
    """Of each image, in their order; None: it has no name."""


async def classify_request_of(request: Request, *, max_images: int) -> NamedImages:
    """Return the request that is asked by HTTP's `request`.

    A body of type multipart/form-data has files, each an image, and fields, which are parameters as those of the query
    are. Any other body, of whatever type, is one image: `curl --data-binary` calls it a form.

    Raises:
        RequestError: no image; an unknown parameter, one given twice, or one of another form; a malformed or too long
            form; more than `max_images` files.
    """
    parameters = list(_query(request))
    if _is_multipart(request):
        contents, filenames, fields = await _form(request, max_images)
        parameters += fields
    else:
        body = await request.body()
        if not body:
            raise RequestError(
                "the body is empty; send the bytes of an image: curl --data-binary @cat.jpg, or files of a form: curl "
                "-F image=@cat.jpg"
            )
        contents, filenames = [body], (None,)
    in_path = request.path_params
    message = ClassifyRequest(model=in_path.get("model", ""), model_version=in_path.get("version", ""))
    are_raw = _set_parameters(message, parameters, in_path)
    message.images.extend(Image(raw=content) if are_raw else Image(encoded=content) for content in contents)
    return NamedImages(message, tuple(filenames))


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


def _query(request: Request) -> Iterable[tuple[str, str]]:
    query: str = request.scope["query_string"].decode("latin-1")
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise RequestError(f"the query can't be read: {error}") from error


class _InMemoryParser(MultiPartParser):
    # The body is bounded, and a file system that can be written to is not needed.
    spool_max_size = 2**31


async def _form(request: Request, max_images: int) -> tuple[list[bytes], Sequence[str | None], list[tuple[str, str]]]:
    parser = _InMemoryParser(
        request.headers, request.stream(), max_files=max_images, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"the form can't be read: {error.message}") from error
    contents: list[bytes] = []
    filenames: list[str | None] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            contents.append(await value.read())
            filenames.append(value.filename or None)
            await value.close()
        else:
            fields.append((name, value))
    if not contents:
        raise RequestError("the form has no file; send at least one: curl -F image=@cat.jpg")
    return contents, filenames, fields


def _set_parameters(message: ClassifyRequest, parameters: Sequence[tuple[str, str]], in_path: Container[str]) -> bool:
    """Set `parameters`, but for those that the path has; return whether the images are raw pixels."""
    known = [name for name in PARAMETERS if name not in in_path]
    seen: set[str] = set()
    are_raw = False
    for name, value in parameters:
        if name not in known:
            raise RequestError(f"the parameter {shortened(name)} is not known here; known: {', '.join(known)}")
        if name in seen:
            raise RequestError(f"the parameter {name!r} is given twice")
        seen.add(name)
        if name in {"top_k", "timeout_ms"}:
            setattr(message, name, _whole_number(name, value))
        elif name == "return_logits":
            message.return_logits = _flag(name, value)
        elif name == "raw":
            are_raw = _flag(name, value)
        elif name == "version":
            message.model_version = value
        else:
            setattr(message, name, value)
    return are_raw


def _whole_number(name: str, value: str) -> int:
    # int() takes signs, spaces, underscores and the digits of other scripts too.
    if value.isascii() and value.isdigit() and len(value) <= _UINT32_DIGITS and int(value) < 2**32:
        return int(value)
    raise RequestError(f"the parameter {name!r} is {shortened(value)}; expected a whole number below 2**32")


def _flag(name: str, value: str) -> bool:
    if value not in _FLAGS:
        raise RequestError(f"the parameter {name!r} is {shortened(value)}; expected true or false")
    return _FLAGS[value]


_FLAGS = {"true": True, "false": False, "1": True, "0": False}

PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"type": "string"}, "Name of the model, or an alias; absent: the only one."),
    "version": ({"type": "string"}, "Version of the model; absent: the one that is served by default."),
    "top_k": ({"type": "integer", "minimum": 1, "default": 1}, "Number of classes of each image, most probable first."),
    "timeout_ms": (
        {"type": "integer", "minimum": 0},
        "Milliseconds after which the answer is of no use; a request that can't be answered by then is refused.",
    ),
    "priority": (
        {"type": "string", "enum": ["interactive", "bulk", "1", "2"], "default": "interactive"},
        "Interactive requests go before bulk ones.",
    ),
    "return_logits": ({"type": "boolean", "default": False}, "Whether to return the logits of every class."),
    "raw": (
        {"type": "boolean", "default": False},
        "Whether the images are pixels as they enter the network (uint8, height x width x channels) and no files.",
    ),
    "id": ({"type": "string"}, "Echoed in the answer."),
}
"""Schema and description of the parameters of the query, or of the form's fields."""
