"""Turns logits into the k most probable classes or labels, once for each batch."""

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.model_package import Task


class RankedBatch:
    """The logits (rows, classes) that the requests of one batch share, ranked once for all of them."""

    def __init__(self, logits: NDArray[np.float32], task: Task = "single-label") -> None:
        self.logits = logits
        self._task = task
        finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
        self._finite: list[bool] = finite.tolist()
        # A request with a row that is not finite fails; in its neighbours' arithmetic the row would make numpy warn.
        self._rankable = logits if all(self._finite) else np.where(finite[:, np.newaxis], logits, np.float32(0))
        self._by_k: dict[int, list[list[tuple[int, float]]]] = {}

    def is_finite(self, first: int, rows: int) -> bool:
        """Return whether all logits of `rows` rows from `first` on are finite."""
        return all(self._finite[first : first + rows])

    def top(self, k: int) -> list[list[tuple[int, float]]]:
        """Return the k most probable classes of each row as (index, probability); see `top_k_from_logits`."""
        if (ranked := self._by_k.get(k)) is None:
            indices, probabilities = top_k_from_logits(self._rankable, k, self._task)
            ranked = [
                list(zip(*row, strict=True)) for row in zip(indices.tolist(), probabilities.tolist(), strict=True)
            ]
            self._by_k[k] = ranked
        return ranked


def top_k_from_logits(
    logits: NDArray[np.float32], k: int, task: Task = "single-label"
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return (indices, probabilities), each (rows, k), most probable first; of equal logits the lower index is first.

    `logits` is (rows, classes), finite, with 1 <= k <= classes. Probabilities are the softmax over all classes,
    computed on logits less their row's largest, so that none overflows; for a multi-label task they are the sigmoid of
    each logit.
    """
    indices = indices_of_largest(logits, k)
    largest = logits[np.arange(len(logits))[:, np.newaxis], indices]
    if task == "multi-label":
        return indices, _sigmoid(largest)
    sums = np.exp(logits - largest[:, :1]).sum(axis=1, keepdims=True)
    return indices, np.exp(largest - largest[:, :1]) / sums


def indices_of_largest(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return (rows, k): the indices of each row's largest logits, largest first; of equal ones the lower is first."""
    if k == 1:
        best: NDArray[np.intp] = logits.argmax(axis=1, keepdims=True)
        return best
    negated = -logits
    if k < logits.shape[1]:
        chosen = np.argpartition(negated, k - 1, axis=1)[:, :k]
        chosen.sort(axis=1)
        values = np.take_along_axis(negated, chosen, axis=1)
        # Among equal logits at its edge the partition picks any, so its choice is the answer only without such a tie.
        if (np.count_nonzero(negated <= values.max(axis=1, keepdims=True), axis=1) == k).all():
            return np.take_along_axis(chosen, np.argsort(values, axis=1, kind="stable"), axis=1)
    return np.argsort(negated, axis=1, kind="stable")[:, :k]


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shrunk = np.exp(-np.abs(logits))  # at most 1, so that none overflows
    probabilities: NDArray[np.float32] = np.where(logits >= 0, np.float32(1), shrunk) / (1 + shrunk)
    return probabilities
