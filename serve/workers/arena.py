"""The shared memory between one worker and the backend process: the rows of one model's requests, and their logits.

Before them lie numbers that one side publishes to the other: the backend's load, and the rows that the worker has
reserved. Each number has one writer and is read without a lock.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
"""Alignment of the parts in bytes: a cache line, so that no two parts share one."""

_PIXEL = np.dtype(np.uint8)
_MOST_NUMBERS = 128
"""Number of float64 numbers that the backend has room for: some 40, one for each of at most 26 buckets, for each bucket
of batches with all cores, and for each of at most 16 lanes."""


@dataclass(frozen=True, slots=True)
class ArenaShape:
    """The shape of one slot, and the number of slots."""

    row_shape: tuple[int, ...]
    classes: int
    slots: int
    row_dtype: np.dtype[Any] = _PIXEL

    @property
    def logits_offset(self) -> int:
        """Offset of the logits in bytes; before them lie the numbers."""
        return _ALIGNMENT + 8 * _MOST_NUMBERS

    @property
    def rows_offset(self) -> int:
        """Offset of the rows in bytes, on which elements of any type are aligned."""
        logits_bytes = 4 * self.slots * self.classes
        return self.logits_offset + -(-logits_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return self.rows_offset + self.slots * math.prod(self.row_shape) * self.row_dtype.itemsize


class Arena:
    """A range of a `fuseline.serve.workers.worker_memory.WorkerMemory`, mapped by both sides."""

    def __init__(self, file: int, shape: ArenaShape, offset: int = 0) -> None:
        """Map the memory from `offset` on behind the descriptor `file`, which stays the caller's.

        Raises `ValueError` if the memory ends before that of `shape` does.
        """
        memory = mmap.mmap(file, shape.size, offset=offset)
        # The arrays keep the mapping alive; it ends with the last of them.
        self.rows: NDArray[Any] = np.ndarray(
            (shape.slots, *shape.row_shape), shape.row_dtype, memory, shape.rows_offset
        )
        """Shape (slots, *row_shape), of the shape's `row_dtype`."""
        self.logits: NDArray[np.float32] = np.ndarray(
            (shape.slots, shape.classes), np.float32, memory, shape.logits_offset
        )
        """Shape (slots, classes)."""
        self._reserved_rows: NDArray[np.uint64] = np.ndarray((1,), np.uint64, memory)
        self._snapshot: NDArray[np.float64] = np.ndarray((_MOST_NUMBERS,), np.float64, memory, _ALIGNMENT)

    @property
    def reserved_rows(self) -> int:
        """Number of rows that this worker has admitted and not yet sent; written by the worker."""
        return int(self._reserved_rows[0])

    @reserved_rows.setter
    def reserved_rows(self, rows: int) -> None:
        self._reserved_rows[0] = rows

    @property
    def admission_snapshot(self) -> list[float]:
        """Latest `Batcher.admission_snapshot` of the backend, padded to `_MOST_NUMBERS`; zeros before the first."""
        numbers: list[float] = self._snapshot.tolist()
        return numbers

    @admission_snapshot.setter
    def admission_snapshot(self, numbers: Sequence[float]) -> None:
        self._snapshot[: len(numbers)] = numbers
