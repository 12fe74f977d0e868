"""How close logits are to those that were expected."""

import numpy as np
from numpy.typing import NDArray


def agreement(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Share of the rows of (n, classes) whose largest logit is of the same class in both; NaN agrees with nothing."""
    same = (logits.argmax(axis=1) == expected.argmax(axis=1)) & np.isfinite(logits).all(axis=1)
    return float(same.mean())


def logit_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the difference, as a share of the standard deviation of `expected`; NaN counts as infinite.

    A hundred images give agreement in steps of a percent; this has no steps.
    """
    difference = float(np.sqrt(np.mean((logits.astype(np.float64) - expected) ** 2)))
    error = difference / max(float(expected.std()), float(np.finfo(np.float32).tiny))
    return error if np.isfinite(error) else float("inf")
