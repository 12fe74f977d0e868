"""What a training does to pixels: normalise them, shift them, mirror them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CROP_PADDING = 4
"""Pixels of black around an image before the crop."""


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 RGB `pixels` (rows, 3, height, width) into float32 with about zero mean and unit variance."""
    scaled = pixels.to(torch.float32) / 255
    return (scaled - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def random_crops(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each of `pixels` (rows, channels, height, width) by up to `CROP_PADDING` both ways; black comes in."""
    rows, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (CROP_PADDING,) * 4)
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, rows, 1), generator=generator)
    y = (top + torch.arange(height))[:, None, :, None]
    x = (left + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(rows)[:, None, None, None], torch.arange(channels)[None, :, None, None], y, x]


def random_flips(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of `pixels` (rows, channels, height, width) left to right, or not, at even odds."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)


class PixelHistogram:
    """Counts the levels 0..255 of each channel, so that mean and deviation are exact whatever the number of images."""

    def __init__(self) -> None:
        self._counts = torch.zeros(3, 256, dtype=torch.int64)

    def add(self, pixels: Tensor) -> None:
        """Count uint8 RGB `pixels` (rows, 3, height, width)."""
        for channel in range(3):
            self._counts[channel] += torch.bincount(pixels[:, channel].flatten(), minlength=256)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels scaled to 0..1.

        Raises:
            ValueError: a channel has one level only, so nothing could be learned from it, nor can it be normalised.
        """
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = self._counts.to(torch.float64)
        pixels = counts.sum(dim=1)
        mean = (counts * levels).sum(dim=1) / pixels
        std = ((counts * (levels - mean[:, None]) ** 2).sum(dim=1) / (pixels - 1)).sqrt()
        if std.min() <= 0:
            colour = ("red", "green", "blue")[int(std.argmin())]
            raise ValueError(
                f"the training images are of one and the same {colour} everywhere; images that differ are needed"
            )
        return mean.tolist(), std.tolist()
