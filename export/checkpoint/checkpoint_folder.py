"""The files to read for a folder or an index of weights, and the configuration beside them.

transformers and timm save `model.safetensors` or `pytorch_model.bin`, whole or in shards that
`model.safetensors.index.json` or `pytorch_model.bin.index.json` lists, with `config.json` beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fuseline.export.checkpoint.checkpoint_file import MAX_CHECKPOINT_BYTES
from fuseline.export.checkpoint.foreign_files import foreign_folder
from fuseline.export.checkpoint.torch_file import EXPECTED
from fuseline.serve.errors import CheckpointError

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
# In the order in which transformers looks for them.
_KNOWN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin")
_MAX_NAME_BYTES = 255
_MAX_JSON_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a checkpoint."""

    weights: tuple[Path, ...]
    """One file, or shards in the order of their names."""
    shard_of: Mapping[str, str] | None
    """Tensor to the name of its file, as the index says; None if there is one file."""
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def files_of_checkpoint(path: Path) -> Files:
    """Return the files of the checkpoint at `path`: a file of weights, an index, or a folder with either.

    Raises:
        CheckpointError: a folder has no weights, or several; an index is damaged, or names files that are absent or
            outside of its folder.
    """
    notes: list[str] = []
    try:
        file = _chosen(path, notes) if path.is_dir() else path
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise CheckpointError(f"{str(path)[:200]!r} is no path of a checkpoint: {error}"[:400]) from error
    is_index = file.name.endswith(_INDEX_SUFFIX)
    config, preprocessor = {}, {}
    if path.is_dir() or is_index or file.name in _WHOLE:
        config = _configuration(file.with_name("config.json"), notes)
        preprocessor = _configuration(file.with_name("preprocessor_config.json"), notes)
    if not is_index:
        return Files((file,), None, config, preprocessor, tuple(notes))
    shard_of = _index(file)
    shards = tuple(file.with_name(name) for name in sorted(set(shard_of.values())))
    for shard in shards:
        if not shard.exists():
            raise CheckpointError(
                f"{file} lists the shard {shard.name}, which isn't beside it; {len(shards)} shards belong together, "
                "copy or download all of them"
            )
    if sum(shard.stat().st_size for shard in shards) > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"the shards of {file} have more than {MAX_CHECKPOINT_BYTES} bytes, the most that is read"
        )
    notes.append(f"{len(shard_of)} tensors read from {len(shards)} shards, as {file.name} lists them")
    return Files(shards, shard_of, config, preprocessor, tuple(notes))


def merged_shards(contents: Mapping[str, Mapping[str, Any]], files: Files, path: Path) -> dict[str, Any]:
    """Return the tensors of `contents`, by file name, in one state dict.

    Raises:
        CheckpointError: a shard lacks a tensor that the index lists for it, or holds one that the index doesn't.
    """
    assert files.shard_of is not None
    merged: dict[str, Any] = {}
    for shard, tensors in contents.items():
        for name in tensors:
            listed = files.shard_of.get(name)
            if listed is None:
                raise CheckpointError(
                    f"{path}: the index doesn't list {name}, which {shard} holds; they don't belong together"
                )
            if listed != shard:
                raise CheckpointError(f"{path}: {name} is in two shards, {listed} and {shard}; save the model again")
        merged.update(tensors)
    for name, shard in files.shard_of.items():
        if name not in merged:
            raise CheckpointError(f"{path}: the index has {name} in {shard}, which lacks it; copy or download it again")
    return {name: merged[name] for name in files.shard_of}


def _chosen(folder: Path, notes: list[str]) -> Path:
    try:
        present = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror}") from error
    found = [name for name in _KNOWN if name in present]
    if not found:
        found = [name for name in present if name.endswith((*_SUFFIXES, _INDEX_SUFFIX))]
        if len(found) > 1 and not foreign_folder(present):
            raise CheckpointError(
                f"{folder} is a folder with {len(found)} checkpoints, {', '.join(found[:8])}; give the one that is "
                "meant"
            )
    if (not found or found[0] not in _KNOWN) and (foreign := foreign_folder(present)):
        raise CheckpointError(f"{folder} is {foreign.replace('FOLDER', str(folder))}")
    if not found:
        raise CheckpointError(f"{folder} is a folder without a checkpoint; {EXPECTED}")
    others = f"; also there and not taken: {', '.join(found[1:])}" if found[1:] else ""
    notes.append(f"weights read from {found[0]} in the folder{others}")
    return folder / found[0]


def _index(file: Path) -> dict[str, str]:
    shard_of = _json_object(file).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise CheckpointError(
            f"{file} is no index of shards: expected `weight_map`, tensor names with file names. Download the index "
            "again, with the shards that it lists, or give a file that holds all weights"
        )
    for name in set(shard_of.values()):
        # A shard lies beside its index; a name with a folder in it could lead anywhere.
        if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES or "\0" in name or not name.isprintable():
            raise CheckpointError(f"{file} names the shard {name[:60]!r}…, which is no file name")
        if name in ("", ".", "..") or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise CheckpointError(
                f"{file} names the shard {name!r}, outside of its folder; names of files beside it were expected"
            )
    return shard_of


def _configuration(file: Path, notes: list[str]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = _json_object(file)
    except CheckpointError as error:
        notes.append(f"{file.name} beside the weights is left out: {error}")
        return {}
    notes.append(f"{file.name} beside the weights read")
    return found


def _json_object(file: Path) -> dict[str, Any]:
    try:
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file} is no regular file; a file of JSON was expected")
        with file.open("rb") as opened:
            data = opened.read(_MAX_JSON_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {file}; {EXPECTED}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        if len(data) > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES} bytes")
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON: {error}; copy or download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a JSON {type(found).__name__}; an object was expected")
    return found
