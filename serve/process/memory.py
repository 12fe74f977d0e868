"""Memory of this process: what it has, and what is free and still resident.

The latter is given back after loading, and kept while serving.
"""

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names that malloc.h gives to parameters of mallopt(3)."""

_LARGEST_KEPT_BLOCK_BYTES = 32 * 2**20
_LARGEST_KEPT_TOP_BYTES = 2 * _LARGEST_KEPT_BLOCK_BYTES
"""glibc's own bounds: what it goes up to by itself once a block of such a size has been freed."""


def release_freed_memory() -> None:
    """Give memory that was freed back to the operating system.

    Loading a network leaves behind as much freed memory as its weights have, which glibc keeps for later: of the 334 MB
    that a process has after it has loaded ResNet-50 into ONNX Runtime, 157 MB are in use.
    """
    _call("malloc_trim", 0)


def keep_freed_memory() -> None:
    """Keep freed memory for what is allocated next, up to 64 MiB for each of malloc's arenas.

    A request of 150 KB is above the size from which on glibc maps and unmaps each block by itself, unless a larger one
    was freed before. It then costs 15 to 25 page faults, which take a fifth of the front end's CPU time.
    """
    _call("mallopt", _M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK_BYTES)
    _call("mallopt", _M_TRIM_THRESHOLD, _LARGEST_KEPT_TOP_BYTES)


def resident_bytes() -> int:
    """Return the bytes of memory that this process has resident, shared ones included; 0 where no one tells."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _call(name: str, *arguments: int) -> None:
    """Call a function of glibc. musl, the other C library of Linux, has neither of them."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)) is not None:
        function(*arguments)
