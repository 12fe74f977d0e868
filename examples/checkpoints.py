"""The checkpoint that `train.py` writes: weights with all that is needed to export them, and to train on.

    state_dict            the model's tensors
    labels, mean, std     class names, and the normalisation of pixels scaled to 0..1
    input_size            side of the square input in pixels
    epoch, accuracy       epochs done, and the share of held-out images right after the last of them
    optimizer, scheduler  their state dicts
    recipe, images        the settings of the training and a fingerprint of its images; it goes on only with the same

Nothing but tensors, numbers, strings, lists and dicts, so `torch.load(..., weights_only=True)` reads it.
"""

import os
from pathlib import Path
from typing import Any

import torch

KEYS = frozenset(
    {
        "state_dict", "labels", "mean", "std", "input_size", "epoch", "accuracy", "optimizer", "scheduler", "recipe",
        "images",
    }
)  # fmt: skip


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` to `path`, whole or not at all: an interruption or a full disk leaves the old file there.

    Raises:
        OSError: it can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; no code in the file is run.

    Raises:
        ValueError: the file is something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers do
        raise ValueError(f"{path} is no checkpoint that can be read: {type(error).__name__}") from error
    missing = KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else KEYS
    if missing:
        raise ValueError(f"{path} was not written by train.py: it has no {', '.join(sorted(missing))}")
    return checkpoint


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
