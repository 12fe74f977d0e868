"""Checkpoints that are refused."""

from pathlib import Path

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError
from tests.refusals import refusal_of


def refusal(path: Path) -> str:
    """Return the message with which the checkpoint is refused; it must name the file."""
    message = refusal_of(CheckpointError, read_checkpoint, path)
    assert path.name in message
    return message
