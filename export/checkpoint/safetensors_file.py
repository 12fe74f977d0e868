"""Reading of a safetensors file as tensors over the memory that it was read into.

The format (github.com/huggingface/safetensors, README, section Format): the header's size as little-endian u64; the
header, a JSON object that gives each tensor `dtype`, `shape` and `data_offsets`, and may have `__metadata__`, texts by
name; then the data, without holes and without overlaps.
"""

import json
import math
import struct
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuseline.export.checkpoint.pickled_tensors import as_dtype, tensor_over
from fuseline.serve.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""Largest size of the header by the format's definition."""

_MAX_TENSORS = 20_000
_MAX_NAME_LENGTH = 1000
_MAX_DIMENSIONS = 32

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(data: mmap) -> bool:
    """Return whether `data` begins as the format says."""
    if len(data) < 10 or data[8:9] != b"{":
        return False
    return bool(struct.unpack("<Q", data[:8])[0] <= MAX_HEADER_BYTES)


def read_safetensors(data: mmap, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of `data`, the bytes of `path`, and its `__metadata__`, in which texts of JSON are decoded.

    Raises:
        CheckpointError: the file breaks a rule of the format; the message says which.
    """
    try:
        return _read(data)
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is a damaged safetensors file of {len(data)} bytes ({error}); copy or download it again"
        ) from error


def _read(data: mmap) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (header_bytes,) = struct.unpack("<Q", data[:8])
    begin = 8 + header_bytes
    if begin > len(data):
        raise ValueError(f"its header should have {header_bytes} bytes")
    header = json.loads(data[8:begin].decode("utf-8"), object_pairs_hook=_without_repetition)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"its __metadata__ is a {type(metadata).__name__}, texts by name were expected")
    if len(header) > _MAX_TENSORS or any(len(name) > _MAX_NAME_LENGTH for name in header):
        raise ValueError(f"it has more than {_MAX_TENSORS} tensors, or a name beyond {_MAX_NAME_LENGTH} characters")
    tensors: dict[str, Tensor] = {}
    expected_start = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, end = entry["data_offsets"]
        if start != expected_start or end < start:
            raise ValueError(f"the data of {name} should begin at {expected_start}, not {start}")
        tensors[name] = _tensor(data, name, entry, begin + start, end - start)
        expected_start = end
    if begin + expected_start != len(data):
        raise ValueError(f"its header describes {expected_start} bytes of data, it has {len(data) - begin}")
    return {name: tensors[name] for name in header}, {key: _decoded(text) for key, text in metadata.items()}


def _tensor(data: mmap, name: str, entry: dict[str, Any], start: int, size: int) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has the unknown type {entry['dtype']}")
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{name} has the shape {shape}")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name} of shape {shape} in {entry['dtype']} can't have {size} bytes")
    return as_dtype(tensor_over(data, start, size), dtype).reshape(shape)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _decoded(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
