"""The memory that one worker shares with the backend process: one descriptor, in which each model has a range."""

import asyncio
import fcntl
import mmap
import os

from fuseline.serve.workers.arena import Arena, ArenaShape

_PAGE = mmap.ALLOCATIONGRANULARITY
_FREED_AT_ONCE = 2**20
"""Bytes that are freed in one turn of the event loop: the kernel takes some 0.3 ms for them."""


class WorkerMemory:
    """Memory without a name (man 2 memfd_create), which grows while models come, and is used again when they go.

    It is freed when no process has it mapped or open any more, however they ended. Its pages take up memory once they
    have been written to. The size of /dev/shm is no limit for it.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("fuseline-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Shrinking the memory would end both sides with SIGBUS.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        # Ends of the ranges that are taken, by their beginnings.
        self._taken: dict[int, int] = {}

    @property
    def file(self) -> int:
        """Descriptor of the memory."""
        return self._file

    def take(self, shape: ArenaShape) -> tuple[int, Arena]:
        """Return zeroed memory for an arena of `shape`, and its offset in bytes, which is its name for `give_back`."""
        size = -(-shape.size // _PAGE) * _PAGE
        offset = 0
        for begin, end in sorted(self._taken.items()):
            if begin - offset >= size:
                break
            offset = end
        if os.fstat(self._file).st_size < offset + size:
            os.ftruncate(self._file, offset + size)
        self._taken[offset] = offset + size
        return offset, Arena(self._file, shape, offset)

    async def give_back(self, offset: int) -> None:
        """Free the range at `offset`, which no process reads or writes any more, in pieces: all of it takes long."""
        size = self._taken[offset] - offset
        with mmap.mmap(self._file, size, offset=offset) as memory:
            for start in range(0, size, _FREED_AT_ONCE):
                memory.madvise(mmap.MADV_REMOVE, start, min(_FREED_AT_ONCE, size - start))
                await asyncio.sleep(0)
        del self._taken[offset]

    def close(self) -> None:
        """Close the descriptor. What is mapped stays."""
        os.close(self._file)
