"""Folders of pictures, one folder a class."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> Path:
    """Write a picture of noise, `size` pixels (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_pictures(folder: Path, counts: dict[str, int]) -> Path:
    """Write so many pictures of each label, in a folder of its own, and return `folder`."""
    for index, (label, count) in enumerate(counts.items()):
        for k in range(count):
            write_picture(folder / label / f"{k}.png", seed=100 * index + k)
    return folder
