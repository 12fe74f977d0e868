"""Reading of a checkpoint as named float32 tensors, with notes of all that was done."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuseline.export.checkpoint.checkpoint_file import FileContents, read_file
from fuseline.export.checkpoint.checkpoint_folder import Files, files_of_checkpoint, merged_shards
from fuseline.export.checkpoint.checkpoint_metadata import metadata_beside, metadata_of_config
from fuseline.export.checkpoint.checkpoint_program import leave_out_what_programs_do, program_of
from fuseline.export.checkpoint.pickled_tensors import UnusableTensor
from fuseline.export.checkpoint.profiler_counters import without_profiler_counters
from fuseline.export.checkpoint.script_normalisation import normalisation_of
from fuseline.export.checkpoint.weight_search import find_weights
from fuseline.export.checkpoint.weights import Weights
from fuseline.export.checkpoint.wrapper_prefixes import Names, network_names, printable
from fuseline.export.program import Program
from fuseline.serve.errors import CheckpointError

_BATCHNORM_EPS = 1e-5
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNTER)
_MAX_NAMED_CLASSES = 6
_MAX_DIMENSIONS = 32

TRAINED_FOR = {"multi-label": "several labels of one picture", "regression": "regression"}
"""The metadata's `task` in words."""


@dataclass(frozen=True, slots=True)
class Naming:
    """The checkpoint's tensors under one reading of their names."""

    described: str
    """What the names are, for people: `the file's own names`."""
    tensors: Mapping[str, Any]
    """The tensors as they are in the file: of any type, with `num_batches_tracked`, and with those that are no part of
    the network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    path: Path
    sha256: str
    """Digest of the very bytes that the tensors were read from. Of several files, it is the digest of the lines
    `DIGEST  NAME\\n`, as sha256sum prints them, in the order of the names."""
    tensors: dict[str, Tensor]
    """Tensors that are dense, finite and on the CPU; floats are float32. Names have no wrappers' prefixes, and
    `num_batches_tracked` is left out."""
    notes: tuple[str, ...]
    """What was done: the container taken, prefixes stripped, types changed, metadata left out."""
    metadata: dict[str, Any]
    """Values that stood beside the weights: `labels` (list of str), `mean` and `std` (lists of float, of pixels scaled
    to 0..1), `input_size` and `resize_shorter_side` (int), `interpolation` (`bilinear` or `bicubic`), `crop_offset`
    (`rounded` or `floored`), `task` (`single-label`, `multi-label` or `regression`), `warnings` (list of str); each
    only if it is there and well-formed."""
    counters: dict[str, Tensor] = field(default_factory=dict)
    """Every `num_batches_tracked`, by a name without wrappers' prefixes."""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json beside the weights, decoded; empty if there is none."""
    layer_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Layer name to its plain attributes, the name of its class as `type`, and the `hooks` and `buffers` that no state
    dict has; empty unless whole modules were pickled. `""` is the network with its wrappers, whose full names are its
    `classes`."""
    program: Program | None = None
    """All that a TorchScript file's forward computes, with the names of `tensors`; None of other files, and where it
    couldn't be read to its end, which a note says."""
    names_in_file: tuple[Naming, ...] = ()
    """The names as they are in the file, and after each removal of a wrapper's prefix but the last, which leaves the
    names of `tensors`."""

    @property
    def namings(self) -> tuple[Naming, ...]:
        """All readings of the names: the file's own first, those of `tensors` last."""
        return *self.names_in_file, Naming("names without wrappers' prefixes", self.tensors)

    def float32(self, naming: Naming) -> dict[str, Tensor]:
        """Return the tensors of one of `namings`, in the form of `tensors`.

        Raises:
            CheckpointError: a tensor that `tensors` leave out can't be used.
        """
        return self.tensors if naming.tensors is self.tensors else _float32_tensors(naming.tensors, self.path, [])


def read_checkpoint(path: Path, *, prefer_ema: bool = False, take: str | None = None) -> Checkpoint:
    """Read weights from a file of `torch.save`, TorchScript or safetensors, from shards or a folder of them.

    No code in a file is ever run and no module that it names is imported: objects of classes that aren't plain values
    stay inert. From a module that was pickled whole, the tensors among its attributes are taken. The tensors lie in the
    memory that the files were read into; only those that aren't float32 there are copied.

    Args:
        prefer_ema: whether averaged weights are taken; else they are taken only where there are no others.
        take: the key, or the prefix of names, where the weights are: `teacher`, `state_dict.encoder`.

    Raises:
        CheckpointError: the file doesn't exist, is no checkpoint or is damaged; it holds no tensors, none at `take`, or
            no averaged ones with `prefer_ema`; weights are NaN, infinite, sparse, quantised or without data; a running
            variance is negative.
    """
    files = files_of_checkpoint(path)
    contents = {file.name: read_file(file) for file in files.weights}
    root = _root(contents, files, path)
    weights = find_weights(root, path, prefer_ema=prefer_ema, take=take)
    if odd := [name for name in weights.tensors if not isinstance(name, str)]:
        shown = f"{odd[0]} ({type(odd[0]).__name__})" if isinstance(odd[0], int) else f"by a {type(odd[0]).__name__}"
        raise CheckpointError(f"{path}: tensors must have names, but one is called {shown}")
    notes = [*files.notes, *weights.notes]
    weights.named = without_profiler_counters(weights.named, notes)
    leave_out_what_programs_do(contents.values(), weights, notes)
    names = network_names(weights.tensors, pretraining=weights.are_of_pretraining)
    notes += names.notes
    named = {new: tensor for name, tensor in weights.tensors.items() if (new := names.renamed(name)) is not None}
    if weights.are_ema:
        named |= _plain_statistics(root, named, path, notes, take)
    counters = {name: value for name, value in named.items() if _last(name) == _COUNTER and isinstance(value, Tensor)}
    tensors = _float32_tensors(named, path, notes)
    try:
        metadata = metadata_beside(weights.levels, notes)
        metadata = metadata_of_config(files.config, files.preprocessor, notes) | metadata
    except (ValueError, TypeError, ArithmeticError) as error:  # the file may hold any numbers and texts
        raise CheckpointError(
            f"{path}: what stands beside its weights can't be read ({error}); save the state dict alone: "
            "torch.save(model.state_dict(), PATH)"
        ) from error
    if (task := metadata.get("task", "single-label")) != "single-label":
        notes.append(f"trained for {TRAINED_FOR[task]}, as what stands beside the weights says")
    notes += _notes_of_inert(contents.values(), weights)
    settings = _layer_settings(weights, names)
    program = program_of(contents.values(), weights, names, notes)
    if program is not None and (normalisation := normalisation_of(program)):
        metadata |= {"mean": normalisation.mean, "std": normalisation.std}
        notes.append("the file's program normalises the pictures itself: its mean and std are taken")
        program = normalisation.rest
    return Checkpoint(
        path=path,
        sha256=_digest(contents),
        tensors=tensors,
        notes=tuple(notes),
        metadata=metadata,
        counters=counters,
        config=files.config,
        layer_settings=settings,
        program=program,
        names_in_file=tuple(_names_in_file(weights, names)),
    )


def _names_in_file(weights: Weights, names: Names) -> Iterator[Naming]:
    whole = {name: value for name, value in weights.of_file.items() if isinstance(name, str)}
    gone = ""
    while whole and whole.keys() != weights.tensors.keys():
        yield Naming(f"the file's names without `{printable(gone)}`" if gone else "the file's own names", whole)
        firsts = {name.partition(".")[0] for name in whole if "." in name}
        if len(firsts) != 1 or not all("." in name for name in whole):
            break
        gone += f"{firsts.pop()}."
        whole = {name.partition(".")[2]: value for name, value in whole.items()}
    for step, (described, renamed) in enumerate(names.stages(weights.tensors)):
        yield Naming("the file's own names" if not step else f"the file's names without {described}", renamed)


def _layer_settings(weights: Weights, names: Names) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {}
    for name, found in weights.layer_settings.items():
        new = names.renamed(name) if name else ""
        if new is None and any(tensor.startswith(f"{name}.") and names.renamed(tensor) for tensor in weights.tensors):
            new = ""  # a wrapper of the network; what it does to pictures counts as the network's own
        if new == "":
            outer = settings.get("", {})
            joined = {key: [*outer.get(key, ()), *found.get(key, ())] for key in ("hooks", "buffers", "methods")}
            joined["classes"] = [*outer.get("classes", ()), found["class"]]
            settings[""] = {key: value for key, value in joined.items() if value}
        elif new is not None:
            settings[new] = found
    return settings


def _root(contents: Mapping[str, FileContents], files: Files, path: Path) -> Any:
    if files.shard_of is None:
        return next(iter(contents.values())).root
    shards: dict[str, Mapping[str, Any]] = {}
    for name, content in contents.items():
        if not isinstance(content.root, dict):
            raise CheckpointError(f"{path}: the shard {name} holds no state dict; names with tensors were expected")
        shards[name] = {key: value for key, value in content.root.items() if isinstance(value, Tensor | UnusableTensor)}
    return merged_shards(shards, files, path)


def _digest(contents: Mapping[str, FileContents]) -> str:
    if len(contents) == 1:
        return next(iter(contents.values())).sha256
    lines = "".join(f"{content.sha256}  {name}\n" for name, content in sorted(contents.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _plain_statistics(
    root: Any, named: Mapping[str, Any], path: Path, notes: list[str], take: str | None
) -> dict[str, Any]:
    """Return BatchNorm's running statistics of the plain weights, where only parameters were averaged."""
    if any(_last(name) in _STATISTICS for name in named):
        return {}
    plain = find_weights(root, path, prefer_ema=False, take=take)
    if plain.are_ema:
        return {}
    names = network_names(plain.tensors)
    renamed = {new: value for name, value in plain.tensors.items() if (new := names.renamed(name)) is not None}
    missing = {name: value for name, value in renamed.items() if name not in named}
    if not missing or any(_last(name) not in _STATISTICS for name in missing):
        return {}
    notes.append(f"the EMA weights lack BatchNorm's statistics: {len(missing)} taken from the plain weights")
    return missing


def _float32_tensors(named: Mapping[str, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    converted: Counter[torch.dtype] = Counter()
    float32: dict[Any, Tensor] = {}
    for name, value in named.items():
        if _last(name) == _COUNTER:
            continue
        tensor = _dense(name, value, path)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            converted[tensor.dtype] += 1
            # Names may share one tensor, which is converted once; the key tells views of one storage apart.
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if key not in float32:
                float32[key] = tensor.to(torch.float32)
            tensor = float32[key]
        tensors[name] = tensor
        _check_values(name, tensor, path)
    if not tensors:
        raise CheckpointError(f"{path} holds no weights, only counters; save model.state_dict() of the trained model")
    for dtype, count in converted.items():
        notes.append(f"{count} tensors of {str(dtype).removeprefix('torch.')} turned into float32")
    return tensors


def _dense(name: str, value: Any, path: Path) -> Tensor:
    if isinstance(value, UnusableTensor):
        fault, cure = value.fault, value.cure
    elif isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        fault = f"claims shape {tuple(value.shape)}, more than the {value.untyped_storage().nbytes()} bytes stored"
        cure = "save it with .contiguous()"
    elif not isinstance(value, Tensor):
        fault, cure = f"is a {type(value).__name__}", "save a state dict"
    elif value.is_complex():
        fault, cure = "is complex", "save the network that its parts make"
    elif value.ndim > _MAX_DIMENSIONS:
        fault, cure = f"has {value.ndim} dimensions", "save the state dict of an image classifier"
    else:
        return value
    raise CheckpointError(f"{path}: {name} {fault}; dense float weights were expected, {cure}")


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.is_floating_point() and not _has_finite_sum(tensor) and not torch.isfinite(tensor).all():
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise CheckpointError(
            f"{path}: {name} has {nans} NaN and {infinities} infinite of {tensor.numel()} values; finite weights were "
            "expected. The training diverged or the file is damaged: use an earlier checkpoint"
        )
    if _last(name) == "running_var" and tensor.numel() and (least := float(tensor.to(torch.float64).min())) < 0:
        tiny = (
            f"; that is tiny beside BatchNorm's eps of {_BATCHNORM_EPS:g}, so probably rounding: clamp it to 0 and save"
            if least > -_BATCHNORM_EPS
            else "; the file is damaged or isn't what its names say"
        )
        raise CheckpointError(f"{path}: {name} has the value {least:g}; a variance is never negative{tiny}")


def _has_finite_sum(tensor: Tensor) -> bool:
    """Return whether the sum is finite, and so every value. Finite values may still have a sum that overflows.

    NumPy computes it, as for hundreds of small tensors the threads that torch wakes cost more than the sums.
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(tensor.numpy().sum()))


def _notes_of_inert(contents: Any, weights: Weights) -> list[str]:
    classes = {name: None for content in contents for name in content.inert if name not in weights.module_classes}
    if not classes:
        return []
    shown = ", ".join(list(classes)[:_MAX_NAMED_CLASSES])
    more = f" and {len(classes) - _MAX_NAMED_CLASSES} more" if len(classes) > _MAX_NAMED_CLASSES else ""
    return [f"objects beside the weights left inert, none of their code run: {shown}{more}"]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
