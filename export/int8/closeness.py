"""How close logits are to those that were expected. All are (n, classes)."""

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.model_package import Task

ANSWERS = {"single-label": "top-1 class", "multi-label": "set of labels"}
"""Task to what is compared of each image, in words."""


def same_answers(
    logits: NDArray[np.float32], expected: NDArray[np.float32], task: Task = "single-label"
) -> NDArray[np.bool_]:
    """Which rows give the same answer (n,): the class of the largest logit, or all labels of probability 0.5 or more.

    By the sigmoid, those are the labels whose logit is 0 or more. NaN agrees with nothing.
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
    """How far each row's `expected` logits would have to move to give the answer of `logits`, (n,).

    From the largest one to that of the class which `logits` has instead; multi-label, the farthest from 0 of the labels
    that only one of them has.
    """
    if task == "multi-label":
        margins: NDArray[np.float32] = np.where((logits >= 0) != (expected >= 0), np.abs(expected), 0).max(axis=1)
    else:
        chosen = np.take_along_axis(expected, logits.argmax(axis=1)[:, np.newaxis], axis=1)
        margins = expected.max(axis=1) - chosen[:, 0]
    return margins


def agreement(logits: NDArray[np.float32], expected: NDArray[np.float32], task: Task = "single-label") -> float:
    """Share of the rows that give the same answer; see `same_answers`."""
    return float(same_answers(logits, expected, task).mean())


def logit_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the difference, as a share of the standard deviation of `expected`; NaN counts as infinite.

    A hundred images give agreement in steps of a percent; this has no steps.
    """
    difference = float(np.sqrt(np.mean((logits.astype(np.float64) - expected) ** 2)))
    error = difference / max(float(expected.std()), float(np.finfo(np.float32).tiny))
    return error if np.isfinite(error) else float("inf")
