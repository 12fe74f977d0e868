"""Makes ModelInferRequest of an infer request's body: JSON, with tensors in it or, as raw bytes, after it.

https://github.com/kserve/open-inference-protocol and the binary tensor data extension,
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fuseline.protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelMetadataResponse
from fuseline.serve.errors import RequestError
from fuseline.serve.http.json_text import json_type, object_from_json, shortened
from fuseline.serve.http.tensor_json import NUMPY_TYPE_OF_DATATYPE, raw_from_json

MAX_JSON_BYTES = 8 * 2**20
"""Most JSON of a request: ten pictures of 224 x 224 UINT8 pixels. Parsed, JSON may take 30 times as much memory, and
nothing else is answered meanwhile."""

_REPEATED_BYTES = 1024
"""Most JSON that is remembered."""

_MAX_DIMENSIONS = 16
_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BinaryOutputs:
    """The outputs that the client wants as binary data."""

    by_default: bool = False
    by_name: dict[str, bool] = field(default_factory=dict)
    """Those whose own `binary_data` overrides the default."""

    def __contains__(self, name: str) -> bool:
        return self.by_name.get(name, self.by_default)


def infer_request_from_body(
    body: bytes | bytearray, header_length: int | None, *, model: str, version: str
) -> tuple[ModelInferRequest, BinaryOutputs]:
    """Return the request to `model` and which of its outputs are to be binary.

    `header_length` is the length of the JSON, which the rest of `body` follows; None: all of it is JSON. The elements
    of every input are then in `raw_input_contents`, without those in shared memory. Members that the protocol doesn't
    have are ignored, as Triton does.

    Raises:
        HTTPException: there is more JSON than `MAX_JSON_BYTES`.
        RequestError: what `object_from_json` and `raw_from_json` raise; a member of another type than the protocol's;
            an input without elements, or with several kinds of them; binary data of another size than all inputs'.
    """
    start = len(body) if header_length is None else header_length
    if start > len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {start}; the body, after decompression, has {len(body)} bytes"
        )
    # Bytes that came in several parts are a bytearray, and slicing one would copy it.
    view = memoryview(body)
    text = bytes(view[:start])
    head = _repeated_head(text, model, version) if start <= _REPEATED_BYTES else _head(text, model, version)
    request = ModelInferRequest()
    request.CopyFrom(head.request)
    for place, name, size in head.binary_inputs:
        end = start + size
        if not start <= end <= len(body):
            raise RequestError(
                f"the input {shortened(name)} has binary_data_size {shortened(size)}; {len(body) - start} bytes of the "
                "body are left for it"
            )
        request.raw_input_contents[place] = bytes(view[start:end])
        start = end
    if start != len(body):
        raise RequestError(f"the body has {len(body) - start} bytes after the binary data of all inputs")
    return request, head.outputs


def infer_request_from_raw(body: bytes | bytearray, metadata: ModelMetadataResponse, version: str) -> ModelInferRequest:
    """Return the request whose body is nothing but the elements of the only input of the model of `metadata`.

    It has as many images as `body` holds, at least one, so that a body of another size is refused as any input is.
    """
    (tensor,) = metadata.inputs
    numpy_type = NUMPY_TYPE_OF_DATATYPE[tensor.datatype]
    row_bytes = numpy_type.itemsize
    for size in tensor.shape[1:]:
        row_bytes *= size
    request = ModelInferRequest(model_name=metadata.name, model_version=version, raw_input_contents=[bytes(body)])
    shape = (max(1, len(body) // row_bytes), *tensor.shape[1:])
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    return request


@dataclass(frozen=True, slots=True)
class _Head:
    """What the JSON of a request says. It is shared by requests, so it is never changed."""

    request: ModelInferRequest
    """Request in whose `raw_input_contents` the place of each binary input is empty."""
    binary_inputs: tuple[tuple[int, str, int], ...]
    """Place in `raw_input_contents`, name, and size in bytes of each binary input."""
    outputs: BinaryOutputs


def _head(text: bytes, model: str, version: str) -> _Head:
    members = object_from_json(text, MAX_JSON_BYTES)
    parameters = dict(_member(members, "parameters", dict, {}))
    request = ModelInferRequest(model_name=model, model_version=version)
    request.id = _member(members, "id", str, "")
    outputs = BinaryOutputs(_popped(parameters, "binary_data_output", bool, False))
    _set_parameters(request.parameters, parameters)
    binary_inputs: list[tuple[int, str, int]] = []
    for tensor in _objects(members, "inputs"):
        place = len(request.raw_input_contents)
        if (size := _add_input(request, tensor)) is not None:
            binary_inputs.append((place, tensor["name"], size))
    for output in _objects(members, "outputs"):
        _add_output(request, output, outputs)
    return _Head(request, tuple(binary_inputs), outputs)


# Most clients send the same JSON before the bytes of each picture.
_repeated_head = lru_cache(maxsize=64)(_head)


def _add_input(request: ModelInferRequest, tensor: Json) -> int | None:
    """Add the input `tensor`, and return the size of its binary data, for which a place is left; None: it has none."""
    name = _member(tensor, "name", str, None)
    datatype = _member(tensor, "datatype", str, None)
    shape = _shape(name, _member(tensor, "shape", list, None))
    parameters = dict(_member(tensor, "parameters", dict, {}))
    binary_size: int | None = _popped(parameters, "binary_data_size", int, None)
    added = request.inputs.add(shape=shape)
    added.name = name
    added.datatype = datatype
    _set_parameters(added.parameters, parameters)
    kinds = [
        kind
        for kind, is_given in (
            ("data", "data" in tensor),
            ("binary_data_size", binary_size is not None),
            ("shared_memory_region", "shared_memory_region" in parameters),
        )
        if is_given
    ]
    if len(kinds) != 1:
        raise RequestError(
            f"the input {shortened(name)} has {' and '.join(kinds) or 'no elements'}; give one of data, "
            "binary_data_size and shared_memory_region"
        )
    if binary_size is not None:
        request.raw_input_contents.append(b"")
    if "data" in tensor:
        request.raw_input_contents.append(raw_from_json(name, datatype, shape, tensor["data"]))
    return binary_size


def _add_output(request: ModelInferRequest, output: Json, outputs: BinaryOutputs) -> None:
    name = _member(output, "name", str, None)
    parameters = dict(_member(output, "parameters", dict, {}))
    if "binary_data" in parameters:
        outputs.by_name[name] = _popped(parameters, "binary_data", bool, False)
    if parameters.get("classification") == 0:
        # As if it were absent, in Triton over HTTP alone.
        del parameters["classification"]
    added = request.outputs.add()
    added.name = name
    _set_parameters(added.parameters, parameters)


def _shape(name: str, shape: list[Any]) -> list[int]:
    if len(shape) > _MAX_DIMENSIONS:
        raise RequestError(
            f"the shape of the input {shortened(name)} has {len(shape)} dimensions; at most {_MAX_DIMENSIONS} are taken"
        )
    for size in shape:
        if type(size) is not int or size not in _INT64:
            raise RequestError(
                f"the shape of the input {shortened(name)} has {shortened(size)}; expected integers of 64 bits"
            )
    return shape


def _member(members: Json, name: str, expected: type, default: Any) -> Any:
    """Return a member, of the JSON type that `expected` is; `default` where it is absent, if that is not None."""
    value = members.get(name, default)
    if type(value) is not expected:
        came = f"is {json_type(value)}" if name in members else "is missing"
        raise RequestError(f"{name!r} {came} in the request's JSON; expected {json_type(expected())}")
    return value


def _objects(members: Json, name: str) -> list[Json]:
    objects: list[Any] = _member(members, name, list, [])
    for value in objects:
        if type(value) is not dict:
            raise RequestError(f"{name!r} holds {json_type(value)}; expected objects")
    return objects


def _popped(parameters: dict[str, Any], name: str, expected: type, default: Any) -> Any:
    value = parameters.pop(name, default)
    if value is not default and type(value) is not expected:
        raise RequestError(f"the parameter {name!r} is {json_type(value)}; expected {json_type(expected())}")
    return value


def _set_parameters(target: Any, parameters: Json) -> None:
    for name, value in parameters.items():
        try:
            target[name].CopyFrom(_parameter(name, value))
        except UnicodeEncodeError as error:
            raise RequestError(f"a parameter's name can't be UTF-8: {shortened(name)}") from error


def _parameter(name: str, value: object) -> InferParameter:
    parameter = InferParameter()
    match value:
        case bool():
            parameter.bool_param = value
        case int() if value in _INT64:
            parameter.int64_param = value
        case int() if value in _UINT64:
            parameter.uint64_param = value
        case float() if math.isfinite(value):
            parameter.double_param = value
        case str():
            parameter.string_param = value
        case _:
            raise RequestError(
                f"the parameter {shortened(name)} is {shortened(value)}, {json_type(value)}; expected a boolean, a "
                "string, or a number within 64 bits"
            )
    return parameter
