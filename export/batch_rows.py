"""How many images a graph or module is run on at a time."""

from typing import Any

from numpy.typing import NDArray


def batch_rows(pixels: NDArray[Any], *, budget_pixels: int, most: int) -> int:
    """Rows of a batch of `pixels` (n, height, width, channels): 1 to `most`, and no more than `budget_pixels` in all.

    So activations take about the same memory whatever the image size.
    """
    height, width = map(int, pixels.shape[1:3])
    return max(1, min(most, budget_pixels // (height * width)))
