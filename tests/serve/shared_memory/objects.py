"""POSIX shared memory objects of a client."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuseline.serve.shared_memory.system_region import FOLDER


@contextmanager
def shared_object(content: bytes = b"", *, size: int | None = None) -> Iterator[Path]:
    """Make an object with `content`, then zeros up to `size`; its name is the path's. It goes at the end."""
    path = unused_path()
    path.write_bytes(content)
    os.truncate(path, len(content) if size is None else size)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def unused_path() -> Path:
    """Where no object is."""
    return FOLDER / f"fuseline-test-{uuid.uuid4().hex}"


def open_files(path: Path) -> int:
    """How often this process has the object open that is, or was, at `path`."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += os.readlink(link).removesuffix(" (deleted)") == str(path)  # noqa: PTH115
    return count
