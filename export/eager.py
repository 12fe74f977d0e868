"""The unfolded network in eager PyTorch FP32, with which everything that an export writes is compared."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fuseline.export.graph.runtimes import batch_rows
from fuseline.serve.errors import VerificationError
from fuseline.serve.model_package import Normalization

_BATCH_PIXELS = 16 * 224 * 224
_MAX_BATCH_ROWS = 16


def eager_logits(
    module: nn.Module, pixels: NDArray[np.uint8], normalization: Normalization, on_progress: Callable[[float], None]
) -> NDArray[np.float32]:
    """Return the logits (n, classes) of the unfolded `module` in eager PyTorch FP32 for `pixels` (n, h, w, c).

    Args:
        module: eval mode, float32; takes normalised NCHW images.
        on_progress: called with the share of the images that are done, 0 to 1.

    Raises:
        VerificationError: eager PyTorch itself gives NaN or infinity.
    """
    rows = rows_at_a_time(pixels)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), rows):
            parts.append(module(normalised(pixels[start : start + rows], normalization)).numpy())
            on_progress(min(1.0, (start + rows) / len(pixels)))
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise VerificationError(
            f"eager PyTorch FP32 itself gives NaN or infinite logits on {bad} of {len(pixels)} images; the checkpoint, "
            "or --mean and --std, are not what the network was trained with"
        )
    return logits


def normalised(pixels: NDArray[np.uint8], normalization: Normalization) -> torch.Tensor:
    """Return the network's float32 NCHW input: uint8 NHWC `pixels` after torchvision's ToTensor and Normalize."""
    mean = torch.tensor(normalization.mean).reshape(1, -1, 1, 1)
    std = torch.tensor(normalization.std).reshape(1, -1, 1, 1)
    # Contiguous, as ToTensor's result is: a network's forward may flatten its maps by `view`.
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std


def rows_at_a_time(pixels: NDArray[np.uint8]) -> int:
    """Return how many of `pixels` (n, h, w, c) eager PyTorch, and each backend compared with it, run at a time."""
    return batch_rows(pixels, budget_pixels=_BATCH_PIXELS, most=_MAX_BATCH_ROWS)
