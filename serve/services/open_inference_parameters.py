"""Parameters of the Open Inference Protocol: of a request, of its tensors, and where a tensor lies in shared memory.

A parameter that has a meaning must have the type that Triton takes for it; others are ignored, as Triton does it.
"""

import reprlib
from collections.abc import Mapping
from typing import NamedTuple

from fuseline.protos.open_inference_pb2 import InferParameter, ModelInferRequest
from fuseline.serve.errors import RequestError

_INTEGER = ("int64_param",)
_FLAG = ("bool_param",)
_TEXT = ("string_param",)

_TYPES_OF_REQUEST = {
    "timeout": _INTEGER,
    "priority": ("int64_param", "uint64_param"),
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": _FLAG,
    "sequence_end": _FLAG,
    "triton_enable_empty_final_response": _FLAG,
}
"""Types of the parameters of a request that have a meaning in Triton's extensions."""

_TYPES_OF_OTHERS = ("int64_param", "bool_param", "string_param", "double_param")
_RESERVED = "triton_"


class RegionSlice(NamedTuple):
    """The part of a region of shared memory that holds a tensor."""

    region: str
    offset: int
    """Offset within the region in bytes."""
    byte_size: int


def check_request_parameters(request: ModelInferRequest) -> None:
    """Raise `RequestError` if a parameter of `request` has a type that Triton refuses for it, or a reserved name."""
    for name, parameter in request.parameters.items():
        types = _TYPES_OF_REQUEST.get(name, _TYPES_OF_OTHERS)
        if types is _TYPES_OF_OTHERS and name.startswith(_RESERVED):
            raise RequestError(
                f"the request's parameter {reprlib.repr(name)} is unknown, and names that begin with {_RESERVED!r} are "
                "reserved; leave it out"
            )
        value = _value(parameter, types, f"the request's parameter {reprlib.repr(name)}")
        if name == "priority" and isinstance(value, int) and value < 0:
            raise RequestError(f"the request's parameter 'priority' is {value}; 0 or more was expected")


def timeout_s(request: ModelInferRequest) -> float | None:
    """Return the parameter `timeout`, microseconds, in seconds; None where it is absent, or not above 0, as in Triton.

    None too where `check_request_parameters` refuses it.
    """
    timeout_us = request.parameters["timeout"].int64_param if "timeout" in request.parameters else 0
    return timeout_us / 1e6 if timeout_us > 0 else None


def region_slice(parameters: Mapping[str, InferParameter], tensor: str) -> RegionSlice | None:
    """Return where `tensor`, its name for people, lies in shared memory; None where its elements are in the message.

    Raises:
        RequestError: a parameter of another type, or negative, or without the others that it needs.
    """
    if "shared_memory_region" not in parameters:
        for name in ("shared_memory_offset", "shared_memory_byte_size"):
            if name in parameters:
                raise RequestError(f"{tensor} has the parameter {name!r} without 'shared_memory_region'; send both")
        return None
    region = _value(parameters["shared_memory_region"], _TEXT, f"'shared_memory_region' of {tensor}")
    assert isinstance(region, str)
    if "shared_memory_byte_size" not in parameters:
        raise RequestError(
            f"{tensor} lies in the region {reprlib.repr(region)}, and its 'shared_memory_byte_size' is missing"
        )
    offset = integer_parameter(parameters, "shared_memory_offset", tensor) or 0
    byte_size = integer_parameter(parameters, "shared_memory_byte_size", tensor)
    assert byte_size is not None
    return RegionSlice(region, offset, byte_size)


def integer_parameter(
    parameters: Mapping[str, InferParameter], name: str, tensor: str, *, least: int = 0
) -> int | None:
    """Return the parameter `name` of `tensor`, `least` or more; None where it is absent.

    Raises:
        RequestError: it has another type than int64, or is less.
    """
    if name not in parameters:
        return None
    what = f"{name!r} of {tensor}"
    value = _value(parameters[name], _INTEGER, what)
    assert isinstance(value, int)
    if value < least:
        raise RequestError(f"{what} is {value}; {least} or more was expected")
    return value


def _value(parameter: InferParameter, types: tuple[str, ...], what: str) -> object:
    """Return the value of `parameter`. Raises `RequestError` if it is of none of `types`."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in types:
        came = "no value" if kind is None else f"{reprlib.repr(getattr(parameter, kind))} as {kind}"
        raise RequestError(f"{what} came with {came}; {' or '.join(types)} was expected")
    return getattr(parameter, kind)
