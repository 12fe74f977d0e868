"""Networks saved as TorchScript, by torch's own writers."""

import warnings
from pathlib import Path

import torch
from torch import nn

from fuseline.export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from fuseline.export.recognition.architectures import Recognised, recognise


def saved(network: nn.Module, path: Path, how: str, side: int = 64) -> Path:
    """`network` in eval mode as the file that `how`, script or trace, makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "script":
            torch.jit.script(network.eval()).save(str(path))
        else:
            example = torch.zeros(1, 3, side, side)
            torch.jit.trace(network.eval(), example, strict=False, check_trace=False).save(str(path))
    return path


def recognised_of(checkpoint: Checkpoint) -> Recognised:
    return recognise(
        checkpoint.tensors,
        layer_settings=checkpoint.layer_settings,
        program=checkpoint.program,
        config=checkpoint.config,
    )


def recognised_in(path: Path) -> Recognised:
    return recognised_of(read_checkpoint(path))
