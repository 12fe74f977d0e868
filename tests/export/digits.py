"""Small networks trained for seconds on scikit-learn's digits, and digits that they never saw, in class folders.

The right value of an export is what the module that it came from gets right.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn import datasets
from torch import nn

from fuseline.serve.model_package import Normalization

HELD_OUT = 200
_BATCH = 32


def digits(side: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, side, side, channels), resized with Pillow, and classes; the same order always."""
    grey, classes = datasets.load_digits(return_X_y=True)
    pictures = [Image.fromarray((row.reshape(8, 8) * 15.9375).astype(np.uint8)) for row in grey]
    resized = np.stack([np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) for picture in pictures])
    return np.repeat(resized[..., None], channels, axis=3), classes


def tensors_of(pixels: np.ndarray, normalization: Normalization) -> torch.Tensor:
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (normalization.mean, normalization.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def trained_on_digits(
    network: nn.Module, normalization: Normalization, *, side: int, channels: int = 3, epochs: int = 4
) -> float:
    """Train `network` in place; the share of the held-out digits that it then gets right."""
    pixels, classes = digits(side, channels)
    images, truth = tensors_of(pixels, normalization), torch.from_numpy(classes)
    order = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    rows = len(images) - HELD_OUT
    # The rate falls to nothing, so that the BatchNorms' averages are of the weights that remain.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, epochs * -(-rows // _BATCH))
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(rows, generator=order).split(_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), truth[batch]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        return float((network(images[-HELD_OUT:]).argmax(1) == truth[-HELD_OUT:]).float().mean())


def held_out_folder(folder: Path, *, side: int, channels: int = 3) -> Path:
    """The held-out digits as PNG files in folders `0` to `9`."""
    pixels, classes = digits(side, channels)
    for number in range(len(pixels) - HELD_OUT, len(pixels)):
        place = folder / str(classes[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number].squeeze()).save(place / f"{number}.png")
    return folder
