"""Tensors over a file's own bytes, made from the calls that rebuild them in a pickle of `torch.save`.

The calls are those of torch/_utils.py: `_rebuild_tensor`, `_v2`, `_v3`, `_rebuild_parameter` and those for tensors
that aren't dense floats, which become an `UnusableTensor` and matter only if the network needs them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Name


@dataclass(frozen=True, slots=True)
class UnusableTensor:
    """A tensor that can't be weights of a network in float32."""

    fault: str
    """What is wrong with the tensor, as a predicate to its name: `is quantised`."""
    cure: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes of one tensor, or of several that share them."""

    bytes_: Tensor | None
    """A uint8 vector over the memory that the file was read into; None where the file says that there is no data."""
    dtype: torch.dtype | None
    """Type of the elements; None: the tensors say it."""


META = UnusableTensor("has no data (meta device)", "save the model after its weights are loaded")
QUANTISED = UnusableTensor("is quantised", "save the float model, before quantisation")
SPARSE = UnusableTensor("is sparse", "save it with .to_dense()")
SHARDED = UnusableTensor("is a part of a distributed tensor", "save the full state dict, gathered on one process")

DTYPES_OF_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QUInt8Storage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": None,
}
# Types by their names in pickles of torch.save; a fixed table, as looking a name up in torch can import a module.
_DTYPES = {
    f"torch.{name}": dtype
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if isinstance(dtype := vars(torch).get(name), torch.dtype)
}
_UNUSABLE = {
    "_rebuild_qtensor": QUANTISED,
    "_rebuild_sparse_tensor": SPARSE,
    "_rebuild_sparse_csr_tensor": SPARSE,
    "_rebuild_nested_tensor": UnusableTensor("is a nested tensor", "save dense tensors"),
    "_rebuild_meta_tensor_no_storage": META,
    "_rebuild_wrapper_subclass": UnusableTensor("is of a subclass without data of its own", "save plain tensors"),
    "_rebuild_device_tensor_from_numpy": UnusableTensor("lies on a device of its own", "save it after .cpu()"),
    "_rebuild_device_tensor_from_cpu_tensor": UnusableTensor("lies on a device of its own", "save it after .cpu()"),
}


def construct_tensor(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return the tensor that the function called `name` would have rebuilt, for `inert_pickle.Construct`.

    Raises:
        Exception: the arguments don't fit, so the file is damaged.
    """
    if name in ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.Tensor", "torch.nn.Parameter"):
        return _only_tensor(arguments[0]) if arguments else NotImplemented
    if name == "torch._tensor._rebuild_from_type_v2" and isinstance(arguments[0], Name):
        return construct_tensor(arguments[0].name, arguments[2])
    if name.startswith("torch.distributed.tensor."):
        return SHARDED
    module, _, function = name.rpartition(".")
    if module != "torch._utils":
        return NotImplemented
    if function in _UNUSABLE:
        return _UNUSABLE[function]
    if function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return _only_tensor(arguments[0])
    if function in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        metadata = arguments[6] if len(arguments) > 6 else None
        return _tensor(*arguments[:4], dtype=None, metadata=metadata)
    if function == "_rebuild_tensor_v3":
        metadata = arguments[7] if len(arguments) > 7 else None
        return _tensor(*arguments[:4], dtype=_dtype(arguments[6]), metadata=metadata)
    return NotImplemented


def storage_dtype(kind: Any) -> torch.dtype | None:
    """Return the type of the elements of the storage class that a pickle names.

    Raises:
        ValueError: there is no such class.
    """
    name = kind.name.rpartition(".")[2] if isinstance(kind, Name) else str(kind)
    if name not in DTYPES_OF_STORAGES:
        raise ValueError(f"storage of unknown kind {name}")
    return DTYPES_OF_STORAGES[name]


def tensor_over(memory: Any, start: int, size: int) -> Tensor:
    """Return `size` bytes of `memory` from `start` on as a uint8 tensor that shares them and keeps `memory` alive."""
    if start < 0 or size < 0 or start + size > len(memory):
        raise ValueError(f"{size} bytes from {start} on lie outside of the file's {len(memory)}")
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)


def as_dtype(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `flat`, uint8 of any length, as elements of `dtype`, without the bytes behind the last whole element.

    It is copied only if its address isn't a multiple of an element's size.
    """
    whole = flat[: flat.numel() // dtype.itemsize * dtype.itemsize]
    return (whole.clone() if whole.data_ptr() % dtype.itemsize else whole).view(dtype)


def _only_tensor(value: Any) -> Any:
    return value if isinstance(value, Tensor | UnusableTensor) else NotImplemented


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *, dtype: torch.dtype | None, metadata: Any) -> Any:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if storage.bytes_ is None:
        return META
    if metadata:
        return UnusableTensor("is a view that negates or conjugates", "save it after .resolve_neg().resolve_conj()")
    kind = dtype or storage.dtype
    if kind is None:
        raise ValueError("neither the tensor nor its storage says its type")
    if storage.bytes_.data_ptr() % kind.itemsize:  # `torch_file` aligned the storage to its own type
        raise ValueError(f"a tensor of {kind} begins within an element of its storage")
    flat = as_dtype(storage.bytes_, kind)
    return flat.as_strided(size, stride, flat.storage_offset() + offset)


def _dtype(name: Any) -> torch.dtype:
    if not isinstance(name, Name) or name.name not in _DTYPES:
        raise TypeError("a tensor of unknown type")
    return _DTYPES[name.name]
