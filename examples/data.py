"""The images that `train.py` trains on, as tensors in memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 32
"""Height and width in pixels: what a network with a 3x3 stem is commonly fed."""


@dataclass(frozen=True)
class LabelledImages:
    """A data set, split once and for all.

    Images are uint8 RGB, NCHW; classes are int64 indices into `labels`.
    """

    labels: list[str]
    train_images: Tensor
    train_classes: Tensor
    held_out_images: Tensor
    held_out_classes: Tensor
    flip: bool
    """Whether the mirror image of a picture shows the same class, so that training may flip."""

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Per-channel mean and standard deviation of the training pixels, scaled to 0..1."""
        pixels = self.train_images.to(torch.float64) / 255
        return pixels.mean(dim=(0, 2, 3)).tolist(), pixels.std(dim=(0, 2, 3)).tolist()


def load_data(name: str) -> LabelledImages:
    """Load the data set called `name`.

    Raises:
        ValueError: none is called so.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; the data sets are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]()


def load_digits() -> LabelledImages:
    """scikit-learn's 1797 handwritten digits (UCI Optical Recognition of Handwritten Digits, its test part).

    A fifth of each class, 360 images in all, is held out; the split never changes. The files come with the
    scikit-learn package: nothing is downloaded.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    grey, classes = datasets.load_digits(return_X_y=True)
    train, held_out = train_test_split(np.arange(len(classes)), test_size=0.2, random_state=0, stratify=classes)
    images = torch.from_numpy(rgb_from_grey16(grey.reshape(-1, 8, 8))).permute(0, 3, 1, 2).contiguous()
    indices = torch.from_numpy(classes.astype(np.int64))
    return LabelledImages(
        labels=[str(digit) for digit in range(10)],
        train_images=images[train],
        train_classes=indices[train],
        held_out_images=images[held_out],
        held_out_classes=indices[held_out],
        flip=False,  # a mirrored digit is another sign
    )


def rgb_from_grey16(grey: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Turn grey images (rows, 8, 8) with levels 0..16 into RGB (rows, 32, 32, 3), uint8, by bilinear enlargement."""
    if grey.min() < 0 or grey.max() > 16:
        raise ValueError(f"grey levels must lie in 0..16, got {grey.min()}..{grey.max()}")
    bytes_ = np.rint(grey * (255 / 16)).astype(np.uint8)
    size = (SIDE, SIDE)
    enlarged = [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR).convert("RGB") for one in bytes_]
    return np.stack([np.asarray(one) for one in enlarged])


DATASETS: dict[str, Callable[[], LabelledImages]] = {"digits": load_digits}
