"""Generated pictures that a network tells apart."""

import numpy as np
from numpy.typing import NDArray

_CELLS = 4


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
