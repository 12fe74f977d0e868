"""The shared memory between one worker and the backend process: the rows of one model's requests, and their logits."""

import fcntl
import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
"""Of the parts, in bytes: a cache line, which no two of them share."""


@dataclass(frozen=True, slots=True)
class ArenaShape:
    """What one slot holds, and how many there are."""

    row_shape: tuple[int, ...]
    classes: int
    slots: int

    @property
    def logits_offset(self) -> int:
        """Where the logits begin; before them lies the number of queued rows."""
        return _ALIGNMENT

    @property
    def pixels_offset(self) -> int:
        """Where the pixels begin."""
        logits_bytes = 4 * self.slots * self.classes
        return self.logits_offset + -(-logits_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def size(self) -> int:
        """Of all of it, in bytes."""
        return self.pixels_offset + self.slots * int(np.prod(self.row_shape))


class Arena:
    """Memory without a name (man 2 memfd_create), mapped by both sides.

    It is freed when no process has it mapped or open any more, however they ended. Pages take up memory once they have
    been written to. Not bound by the size of /dev/shm.
    """

    def __init__(self, file: int, shape: ArenaShape) -> None:
        """Map the memory behind the descriptor `file`, which stays the caller's."""
        memory = mmap.mmap(file, shape.size)
        # The arrays keep the mapping alive; it goes with the last of them.
        self.pixels: NDArray[np.uint8] = np.ndarray(
            (shape.slots, *shape.row_shape), np.uint8, memory, shape.pixels_offset
        )
        """(slots, *row_shape)."""
        self.logits: NDArray[np.float32] = np.ndarray(
            (shape.slots, shape.classes), np.float32, memory, shape.logits_offset
        )
        """(slots, classes)."""
        self._queued_rows: NDArray[np.uint32] = np.ndarray((1,), np.uint32, memory)

    @property
    def queued_rows(self) -> int:
        """Rows of all workers that waited when the backend last told."""
        return int(self._queued_rows[0])

    @queued_rows.setter
    def queued_rows(self, rows: int) -> None:
        self._queued_rows[0] = rows


def create_memory(shape: ArenaShape) -> int:
    """Return a descriptor of new, zeroed memory for an arena of `shape`. Its size is final."""
    file = os.memfd_create("fuseline-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, shape.size)
    # Whoever shrank it would end both sides with SIGBUS.
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return file
