"""Where an export writes its package, and what the model is called."""

import re
from pathlib import Path

from fuseline.serve.errors import CheckpointError, InputError, PackageError
from fuseline.serve.model_package import NAME_PATTERN


def destination_of(checkpoint: Path, out: Path | None) -> Path:
    """Return the package's folder: `out`, or the checkpoint's path without its suffix.

    Raises:
        CheckpointError: `checkpoint` has no name to call the folder by.
        PackageError: the folder would be the checkpoint itself.
    """
    if not checkpoint.name:
        raise CheckpointError(f"{checkpoint} has no name to call the package by; name its folder with --out")
    destination = out or _without_suffix(checkpoint)
    if destination == checkpoint:
        raise PackageError(f"{destination} is the checkpoint itself; name the package's folder with --out")
    return destination


def model_name(name: str | None, destination: Path) -> str:
    """Return `name`, or that of the package's folder. Raise `InputError` if it is no valid name of a model."""
    taken = name or destination.resolve().name
    if re.fullmatch(NAME_PATTERN, taken) is None:
        came = "--name" if name else "the folder's name, for want of --name,"
        raise InputError(
            f"{came} is {taken!r}; a model's name has 1 to 128 letters, digits, dots, hyphens and underscores and "
            "begins with a letter or digit"
        )
    return taken


def _without_suffix(checkpoint: Path) -> Path:
    """Return `model` for `model.pt` and for `model.safetensors.index.json`; a folder keeps its name."""
    index_of = checkpoint.name.removesuffix(".index.json")
    return checkpoint if checkpoint.is_dir() else checkpoint.with_name(index_of).with_suffix("")
