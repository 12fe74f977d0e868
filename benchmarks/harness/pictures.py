"""Generated pictures that a network tells apart."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_CELLS = 4
_JPEG_QUALITY = 90
"""Makes 96 KB of a generated picture of 500 x 375, about as much as a photograph of ImageNet has."""


def generated_pictures(row_shape: tuple[int, int, int], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """`count` pictures (count, *row_shape), uint8: coarse colour fields under noise, the same for the same seed.

    Noise alone would look the same to a network in every picture, and swapped answers would go unseen.
    """
    generator = np.random.default_rng(seed)
    height, width, channels = row_shape
    fields = generator.uniform(0, 255, (count, _CELLS, _CELLS, channels))
    rows = np.arange(height) * _CELLS // height
    columns = np.arange(width) * _CELLS // width
    noise = generator.normal(0, 20, (count, height, width, channels))
    return np.clip(fields[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)


def as_jpegs(pictures: NDArray[np.uint8]) -> tuple[bytes, ...]:
    """Return each of `pictures` (count, height, width, 3) as a JPEG file."""
    return tuple(map(_as_jpeg, pictures))


def _as_jpeg(picture: NDArray[np.uint8]) -> bytes:
    Image.fromarray(picture).save(file := BytesIO(), "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
