"""Runs many rows through a backend, which takes fixed sizes of batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Instance

ToRows = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""Turns pixels, uint8 (n, height, width, channels), into rows of a graph's input."""


def infer_in_largest_bucket(
    backend: Instance,
    pixels: NDArray[np.uint8],
    on_progress: Callable[[float], None] = lambda _: None,
    *,
    to_rows: ToRows = lambda pixels: pixels,
) -> NDArray[np.float32]:
    """Do `infer_in_bucket` with the largest bucket of `backend`."""
    return infer_in_bucket(backend, pixels, backend.buckets[-1], on_progress, to_rows=to_rows)


def infer_in_bucket(
    backend: Instance,
    pixels: NDArray[np.uint8],
    bucket: int,
    on_progress: Callable[[float], None] = lambda _: None,
    *,
    to_rows: ToRows = lambda pixels: pixels,
) -> NDArray[np.float32]:
    """Return the logits (n, classes) of `pixels` (n, h, w, c), n at least 1, in batches of `bucket`.

    `to_rows` makes the rows that the backend takes, batch by batch, where they aren't pixels. The last batch is filled
    with zeros, whose logits are left out. `on_progress` is given the share that is done.
    Raises `fuseline.serve.errors.BackendError` when the runtime fails.
    """
    parts = []
    for start in range(0, len(pixels), bucket):
        rows = to_rows(pixels[start : start + bucket])
        batch = np.zeros((bucket, *rows.shape[1:]), rows.dtype)
        batch[: len(rows)] = rows
        parts.append(backend.infer(batch)[: len(rows)])
        on_progress(min(1.0, (start + bucket) / len(pixels)))
    return np.concatenate(parts)
