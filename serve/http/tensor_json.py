"""Elements of the Open Inference Protocol's tensors, between JSON and raw little-endian bytes."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.errors import RequestError
from fuseline.serve.http.json_text import json_type, shortened
from fuseline.serve.services.bytes_elements import elements_from_raw, raw_from_elements

NUMPY_TYPE_OF_DATATYPE: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Type of the elements of each datatype that JSON can hold, besides BYTES, whose elements are strings."""

_JSON_TYPES_OF_KIND: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "booleans"),
    "u": (frozenset({int}), "integers"),
    "i": (frozenset({int}), "integers"),
    "f": (frozenset({int, float}), "numbers"),
}


def raw_from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> bytes:
    """Return the raw elements of the tensor `name` of `shape`, row-major, from its JSON `data`.

    `data` is either flat or nested as `shape` says. Elements of BYTES are strings, each of which becomes its length as
    4 little-endian bytes and its UTF-8.

    Raises:
        RequestError: elements of another type than the datatype's or beyond its range, data of another shape, or a
            datatype that JSON has no elements for.
    """
    elements = _flattened(name, shape, data)
    if datatype == "BYTES":
        return _bytes_elements(name, elements)
    numpy_type = NUMPY_TYPE_OF_DATATYPE.get(datatype)
    if numpy_type is None:
        raise RequestError(
            f"the input {shortened(name)} is {shortened(datatype)}, whose data can't be JSON; data can be "
            f"{', '.join((*NUMPY_TYPE_OF_DATATYPE, 'BYTES'))}, others are sent as binary data"
        )
    types, expected = _JSON_TYPES_OF_KIND[numpy_type.kind]
    _check_types(name, elements, types, f"{expected}, as it is {datatype}")
    return _numbers(name, datatype, numpy_type, elements).tobytes()


def json_from_raw(datatype: str, raw: bytes) -> str:
    """Return the JSON array, flat, of a tensor's `raw` elements, which are finite.

    A floating-point number is the shortest one that its own type tells from its neighbours.
    """
    if datatype == "BYTES":
        return json.dumps([element.decode() for element in elements_from_raw(raw)], separators=(",", ":"))
    elements = np.frombuffer(raw, NUMPY_TYPE_OF_DATATYPE[datatype])
    if elements.dtype.kind == "f" and elements.dtype.itemsize < 8:
        # As Python's floats they would have the digits of FP64, most of them noise.
        return f"[{','.join(elements.astype(np.str_).tolist())}]"
    return json.dumps(elements.tolist(), separators=(",", ":"))


def _flattened(name: str, shape: Sequence[int], data: object) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(f"the data of the input {shortened(name)} is {json_type(data)}; expected an array")
    elements = data
    if data and isinstance(data[0], list):
        if not shape or len(data) != shape[0]:
            raise _other_shape(name, shape)
        for size in shape[1:]:
            if set(map(type, elements)) != {list} or set(map(len, elements)) != {size}:
                raise _other_shape(name, shape)
            elements = list(chain.from_iterable(elements))
    size = math.prod(shape)
    if len(elements) != size:
        raise RequestError(
            f"the data of the input {shortened(name)} has {len(elements)} elements; its shape {list(shape)} has {size}"
        )
    return elements


def _other_shape(name: str, shape: Sequence[int]) -> RequestError:
    return RequestError(
        f"the data of the input {shortened(name)} is not nested as its shape {list(shape)} says: send one array a "
        "dimension, all of one length, or all elements in one flat array"
    )


def _check_types(name: str, elements: list[Any], types: frozenset[type], expected: str) -> None:
    if not types.issuperset(set(map(type, elements))):
        other = next(element for element in elements if type(element) not in types)
        raise RequestError(
            f"the data of the input {shortened(name)} has the element {shortened(other)}, {json_type(other)}; expected "
            f"{expected}"
        )


def _numbers(name: str, datatype: str, numpy_type: np.dtype[Any], elements: list[Any]) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            values = np.array(elements, numpy_type)
    except OverflowError as error:
        raise _beyond(name, datatype, numpy_type, elements) from error
    if numpy_type.kind == "f" and not np.isfinite(values).all():
        raise _beyond(name, datatype, numpy_type, elements)
    return values


def _beyond(name: str, datatype: str, numpy_type: np.dtype[Any], elements: list[Any]) -> RequestError:
    limits = np.finfo(numpy_type) if numpy_type.kind == "f" else np.iinfo(numpy_type)
    other = next(element for element in elements if not int(limits.min) <= element <= int(limits.max))
    return RequestError(
        f"the data of the input {shortened(name)} has the element {shortened(other)}, beyond the range of {datatype}"
    )


def _bytes_elements(name: str, elements: list[Any]) -> bytes:
    _check_types(name, elements, frozenset({str}), "strings, as it is BYTES")
    return raw_from_elements([element.encode() for element in elements])
