"""A lock between processes, which the operating system takes back from a process that dies."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `path`, a folder or a file that is made if it isn't there, against all other processes.

    `on_wait` is called once if another process holds it now. The file stays afterwards: removing it would let two
    processes lock two files of one name. Threads of one process exclude each other as processes do.

    Raises:
        OSError: `path` can't be opened or its file system has no locks.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
