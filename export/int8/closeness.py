"""Measures of how close logits are to the expected ones; both are (n, classes)."""

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.model_package import Task

ANSWERS = {"single-label": "top-1 class", "multi-label": "set of labels"}
"""Task to the answer for an image that is compared, in words."""


def same_answers(
    logits: NDArray[np.float32], expected: NDArray[np.float32], task: Task = "single-label"
) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows with the same answer: the class of the largest logit, or the set of labels.

    The set has the labels of probability 0.5 or more; by the sigmoid, their logit is 0 or more. NaN agrees with
    nothing.
    """
    same: NDArray[np.bool_]
    if task == "multi-label":
        same = ((logits >= 0) == (expected >= 0)).all(axis=1)
    else:
        same = logits.argmax(axis=1) == expected.argmax(axis=1)
    return same & np.isfinite(logits).all(axis=1)


def answer_margins(
    logits: NDArray[np.float32], expected: NDArray[np.float32], task: Task = "single-label"
) -> NDArray[np.float32]:
    """Return how far each row's `expected` logits would have to move to give the answer of `logits`, (n,).

    It is the distance from the largest logit to that of the class which `logits` has instead; for multi-label, the
    largest distance from 0 among the labels that only one of the two has.
    """
    if task == "multi-label":
        margins: NDArray[np.float32] = np.where((logits >= 0) != (expected >= 0), np.abs(expected), 0).max(axis=1)
    else:
        chosen = np.take_along_axis(expected, logits.argmax(axis=1)[:, np.newaxis], axis=1)
        margins = expected.max(axis=1) - chosen[:, 0]
    return margins


def agreement(logits: NDArray[np.float32], expected: NDArray[np.float32], task: Task = "single-label") -> float:
    """Return the share of the rows that give the same answer; see `same_answers`."""
    return float(same_answers(logits, expected, task).mean())


def logit_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the root mean square of the difference, as a share of the standard deviation of `expected`.

    NaN counts as infinite. On a hundred images agreement has steps of a percent; this error has no steps.
    """
    difference = float(np.sqrt(np.mean((logits.astype(np.float64) - expected) ** 2)))
    error = difference / max(float(expected.std()), float(np.finfo(np.float32).tiny))
    return error if np.isfinite(error) else float("inf")
