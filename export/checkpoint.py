"""A checkpoint file becomes named float32 tensors, with a note of all that was done to get there."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.checkpoint_file import bytes_of_checkpoint, contents_of_checkpoint
from serve.errors import CheckpointError

_CONTAINERS = ("state_dict", "model", "net", "model_state_dict", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.")
_LABEL_KEYS = ("labels", "classes", "class_names")
_MAX_NESTING = 8
_BATCHNORM_EPS = 1e-5


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    sha256: str
    """Of the very bytes that the tensors were read from."""
    tensors: dict[str, Tensor]
    """Dense, on the CPU, finite; floats are float32. Without `num_batches_tracked`, without wrappers' prefixes."""
    notes: tuple[str, ...]
    """What was done: the container taken, prefixes stripped, types changed, metadata left out."""
    metadata: dict[str, Any]
    """Of what stood beside the weights: `labels` (list of str), `mean` and `std` (lists of float, of pixels scaled to
    0..1), `input_size` (int); each only if it is there and well-formed."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict from a file of `torch.save` or safetensors. No code in the file is ever run.

    The state dict may be the file's root or lie in `state_dict`, `model`, `net`, `model_state_dict` or `ema`, also one
    in another; of several the first in this order is taken. Prefixes of wrappers (`module.`, `model.`, `_orig_mod.`,
    `backbone.`) go where every name has them.

    Raises:
        CheckpointError: no such file; no checkpoint; damaged; code would have to be run; no tensors; weights that are
            NaN, infinite, sparse, quantised or without data; a negative running variance.
    """
    data = bytes_of_checkpoint(path)
    contents = contents_of_checkpoint(data, path)
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}; expected a state dict: names with tensors")
    notes: list[str] = []
    levels = _levels_to_weights(contents, notes)
    named = {name: value for name, value in levels[-1].items() if isinstance(value, Tensor)}
    if not named:
        keys = ", ".join(repr(key) for key in list(contents)[:8]) or "none"
        raise CheckpointError(
            f"{path} holds no tensors where they were expected: at its root or in {', '.join(_CONTAINERS)}; its keys "
            f"are {keys}. Save the state dict: torch.save(model.state_dict(), PATH)"
        )
    if odd := [name for name in named if not isinstance(name, str)]:
        raise CheckpointError(
            f"{path}: tensors must have names, but one is called {odd[0]!r} ({type(odd[0]).__name__})"
        )
    tensors = _float32_tensors(_without_prefixes(named, notes), path, notes)
    metadata = _metadata(levels, notes)
    return Checkpoint(path, hashlib.sha256(data).hexdigest(), tensors, tuple(notes), metadata)


def _levels_to_weights(contents: Mapping[Any, Any], notes: list[str]) -> list[Mapping[Any, Any]]:
    """The mappings from the root to the state dict, which is the last."""
    levels = [contents]
    while len(levels) <= _MAX_NESTING:
        found = [key for key in _CONTAINERS if _holds_tensors(levels[-1].get(key))]
        if not found:
            break
        levels.append(levels[-1][found[0]])
        others = f"; also there and not taken: {', '.join(found[1:])}" if found[1:] else ""
        notes.append(f"weights taken from `{found[0]}`{others}")
    return levels


def _holds_tensors(value: Any, nesting: int = 0) -> bool:
    if not isinstance(value, Mapping) or nesting > _MAX_NESTING:
        return False
    return any(isinstance(item, Tensor) for item in value.values()) or any(
        _holds_tensors(value.get(key), nesting + 1) for key in _CONTAINERS
    )


def _without_prefixes(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    named = dict(tensors)
    # torch.optim.swa_utils.AveragedModel keeps it beside `module.*`.
    if len(named) > 1 and named.pop("n_averaged", None) is not None:
        notes.append("counter `n_averaged` of an averaged model left out")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in named)), None):
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        notes.append(f"prefix `{prefix}` stripped from every name")
    return named


def _float32_tensors(named: Mapping[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    converted: Counter[torch.dtype] = Counter()
    for name, tensor in named.items():
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        _check_storage(name, tensor, path)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            converted[tensor.dtype] += 1
            tensors[name] = tensor.detach().to(torch.float32)
        else:
            tensors[name] = tensor.detach()
        _check_values(name, tensors[name], path)
    if not tensors:
        raise CheckpointError(f"{path} holds no weights, only counters; save model.state_dict() of the trained model")
    for dtype, count in converted.items():
        notes.append(f"{count} tensors of {str(dtype).removeprefix('torch.')} turned into float32")
    return tensors


def _check_storage(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.device.type == "meta":
        fault, cure = "has no data (meta device)", "save the model after its weights are loaded"
    elif tensor.is_quantized:
        fault, cure = f"is quantised ({tensor.dtype})", "save the float model, before quantisation"
    elif tensor.layout != torch.strided:
        fault, cure = f"is sparse ({tensor.layout})", "save it with .to_dense()"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        fault = f"claims shape {tuple(tensor.shape)}, more than the {tensor.untyped_storage().nbytes()} bytes stored"
        cure = "save it with .contiguous()"
    else:
        return
    raise CheckpointError(f"{path}: {name} {fault}; dense float weights were expected, {cure}")


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise CheckpointError(
            f"{path}: {name} has {nans} NaN and {infinities} infinite of {tensor.numel()} values; finite weights were "
            "expected. The training diverged or the file is damaged: use an earlier checkpoint"
        )
    if name.rpartition(".")[2] == "running_var" and tensor.numel() and (least := float(tensor.min())) < 0:
        tiny = (
            f"; that is tiny beside BatchNorm's eps of {_BATCHNORM_EPS:g}, so probably rounding: clamp it to 0 and save"
            if least > -_BATCHNORM_EPS
            else "; the file is damaged or isn't what its names say"
        )
        raise CheckpointError(f"{path}: {name} has the value {least:g}; a variance is never negative{tiny}")


def _metadata(levels: list[Mapping[Any, Any]], notes: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for key in (*_LABEL_KEYS, "mean", "std", "input_size"):
        for level in levels:
            target = "labels" if key in _LABEL_KEYS else key
            if target in metadata or level.get(key) is None:
                continue
            value = _well_formed(target, level[key])
            if value is None:
                notes.append(f"`{key}` beside the weights is left out: expected {_METADATA_FORMS[target]}")
            else:
                metadata[target] = value
    return metadata


_METADATA_FORMS = {
    "labels": "a list of texts",
    "mean": "a list of finite numbers",
    "std": "a list of finite numbers above 0",
    "input_size": "a whole number above 0",
}


def _well_formed(target: str, value: Any) -> Any:
    """`value` as plain str, float, int or list of them, or None if it isn't what `target` must be."""
    if isinstance(value, Tensor):
        value = value.tolist() if value.layout == torch.strided and value.device.type == "cpu" else None
    if target == "input_size":
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    if not isinstance(value, list | tuple) or not value:
        return None
    if target == "labels":
        return list(value) if all(isinstance(label, str) for label in value) else None
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        return None
    if not all(math.isfinite(number) and (target == "mean" or number > 0) for number in value):
        return None
    return [float(number) for number in value]
