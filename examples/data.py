"""The images that `train.py` trains on: a data set that has a name, or a folder of class folders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pixels import PixelHistogram
from torch import Tensor

SIDE = 32
"""Height and width in pixels of cifar10 and digits: what a network with a 3x3 stem is commonly fed."""

OnRead = Callable[[int, int], None]
"""Told that so many images of so many are read."""


class Images(Protocol):
    """uint8 RGB images of one size: a tensor (rows, 3, height, width), or files that are decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Those at the int64 positions `rows`, as (len(rows), 3, height, width)."""


@dataclass(frozen=True)
class LabelledImages:
    """A data set, split once and for all. Classes are int64 indices into `labels`."""

    labels: list[str]
    train_images: Images
    train_classes: Tensor
    held_out_images: Images
    held_out_classes: Tensor
    mean: list[float]
    std: list[float]
    """Of the training pixels, scaled to 0..1, channel by channel."""
    flip: bool
    """Whether the mirror image of a picture shows the same class, so that training may flip."""
    fingerprint: str
    """Tells these images from others; equal if they are the same."""


def load_data(
    name: str,
    *,
    input_size: int = SIDE,
    data_dir: Path = Path("data"),
    on_read: OnRead | None = None,
) -> LabelledImages:
    """Load the data set called `name`, or the folder `name` with a folder of images for each class.

    `input_size` is the side of a folder's images once resized and cropped; those of `NAMED` have `SIDE` pixels.
    `data_dir` is where cifar10 is looked for and downloaded to.

    Raises:
        ValueError: there is no such data, it can't be used, or it doesn't come in `input_size`. The message says why.
    """
    if name not in NAMED:
        from image_folder import load_image_folder

        return load_image_folder(Path(name), side=input_size, on_read=on_read)
    if input_size != SIDE:
        raise ValueError(f"{name} has images of {SIDE} x {SIDE} pixels, --input-size {input_size} is for a folder")
    if name == "digits":
        return load_digits()
    from cifar10 import load_cifar10

    return load_cifar10(data_dir)


def load_digits(side: int = SIDE) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits (UCI Optical Recognition of Handwritten Digits, its test part).

    A fifth of each class, 360 images in all, is held out; the split never changes. The files come with the
    scikit-learn package: nothing is downloaded. They are enlarged from 8 x 8 to `side` x `side` pixels.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    grey, classes = datasets.load_digits(return_X_y=True)
    train, held_out = train_test_split(np.arange(len(classes)), test_size=0.2, random_state=0, stratify=classes)
    images = torch.from_numpy(rgb_from_grey16(grey.reshape(-1, 8, 8), side)).permute(0, 3, 1, 2).contiguous()
    indices = torch.from_numpy(classes.astype(np.int64))
    return in_memory(
        labels=[str(digit) for digit in range(10)],
        train=(images[train], indices[train]),
        held_out=(images[held_out], indices[held_out]),
        flip=False,  # a mirrored digit is another sign
        fingerprint="digits",
    )


def in_memory(
    *,
    labels: Sequence[str],
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    flip: bool,
    fingerprint: str,
) -> LabelledImages:
    """A data set of tensors: each part is uint8 RGB images (rows, 3, height, width) and their classes (rows,)."""
    histogram = PixelHistogram()
    histogram.add(train[0])
    mean, std = histogram.mean_and_std()
    return LabelledImages(list(labels), *train, *held_out, mean=mean, std=std, flip=flip, fingerprint=fingerprint)


def rgb_from_grey16(grey: NDArray[np.floating], side: int = SIDE) -> NDArray[np.uint8]:
    """Turn grey images (rows, 8, 8) with levels 0..16 into uint8 RGB (rows, side, side, 3), enlarged bilinearly."""
    if grey.min() < 0 or grey.max() > 16:
        raise ValueError(f"grey levels must lie in 0..16, got {grey.min()}..{grey.max()}")
    bytes_ = np.rint(grey * (255 / 16)).astype(np.uint8)
    size = (side, side)
    enlarged = [Image.fromarray(one).resize(size, Image.Resampling.BILINEAR).convert("RGB") for one in bytes_]
    return np.stack([np.asarray(one) for one in enlarged])


NAMED = ("cifar10", "digits")
"""Names that mean a data set; a folder called so is written `./digits`."""
