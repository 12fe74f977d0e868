"""Logits to the k most probable classes."""

import numpy as np
from numpy.typing import NDArray


def top_k_from_logits(logits: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return (indices, probabilities), each (rows, k), most probable first; of equal logits the lower index is first.

    `logits` is (rows, classes), finite, with 1 <= k <= classes. Probabilities are the softmax over all classes,
    computed on logits less their row's largest, so that none overflows.
    """
    indices = _indices_of_largest(logits, k)
    largest = logits[np.arange(len(logits))[:, np.newaxis], indices]
    sums = np.exp(logits - largest[:, :1]).sum(axis=1, keepdims=True)
    return indices, np.exp(largest - largest[:, :1]) / sums


def _indices_of_largest(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    if k == 1:
        best: NDArray[np.intp] = logits.argmax(axis=1, keepdims=True)
        return best
    negated = -logits
    if k < logits.shape[1]:
        chosen = np.argpartition(negated, k - 1, axis=1)[:, :k]
        chosen.sort(axis=1)
        values = np.take_along_axis(negated, chosen, axis=1)
        # The partition picks among equal logits at its edge as it likes. Only without such a tie is it the answer.
        if (np.count_nonzero(negated <= values.max(axis=1, keepdims=True), axis=1) == k).all():
            return np.take_along_axis(chosen, np.argsort(values, axis=1, kind="stable"), axis=1)
    return np.argsort(negated, axis=1, kind="stable")[:, :k]
