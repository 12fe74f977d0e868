"""The mathematics of folding, in float64; this module knows tensors and no graph.

At inference a BatchNorm is y = (x - mean) / sqrt(var + eps) * gamma + beta (Ioffe and Szegedy 2015, algorithm 2): a
per-channel gain and offset, which the convolution or linear layer before it can carry. The division of pixels by
255 * std is a per-channel gain too, which the first convolution carries; the subtraction of the mean stays in the
graph, because a convolution pads with zeros after it, and a padded pixel must keep meaning "the mean".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class BatchNormTensors:
    """A BatchNorm at inference; its tensors are (channels,), float64."""

    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float

    @property
    def gain(self) -> Tensor:
        """Gamma / sqrt(running_var + eps), shape (channels,)."""
        gain = torch.rsqrt(self.running_var + self.eps)
        return gain if self.gamma is None else self.gamma * gain

    @property
    def offset(self) -> Tensor:
        """Summand after the gain, beta - mean * gain, shape (channels,)."""
        offset = -self.running_mean * self.gain
        return offset if self.beta is None else self.beta + offset


def fold_batchnorm(weight: Tensor, bias: Tensor | None, batchnorm: BatchNormTensors) -> tuple[Tensor, Tensor]:
    """Return weight (out, ...) and bias (out,) of a layer that equals that of `weight` and `bias`, then `batchnorm`.

    All tensors are float64.
    """
    gain, offset = batchnorm.gain, batchnorm.offset
    folded = weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
    return folded, offset if bias is None else bias * gain + offset


def input_scale(std: Sequence[float]) -> Tensor:
    """Return the factor of centred pixels of 0..255, 1 / (255 * std), shape (channels,), float64."""
    return 1 / torch.tensor([PIXEL_MAX * value for value in std], dtype=torch.float64)


def fold_input_scale(weight: Tensor, std: Sequence[float]) -> Tensor:
    """Return the first convolution's weight (out, in, kh, kw), float64, for centred pixels of 0..255."""
    return weight * input_scale(std).reshape(1, -1, 1, 1)
