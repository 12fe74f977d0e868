"""Disks that are full, read-only or gone: tiny file systems of the test's own, which only root may mount."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str = "size=4m") -> Iterator[Callable[[], None]]:
    """Mount a file system in memory on `folder`; yield what unmounts it at once."""

    def unmount() -> None:
        subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)

    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "fuseline-test", folder], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield unmount
    finally:
        unmount()


def fill(folder: Path) -> None:
    """Leave no byte free in the file system of `folder`."""
    with (folder / "filling").open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017


def use_up_inodes(folder: Path) -> None:
    """Leave room for no further file in the file system of `folder`."""
    with suppress(OSError):
        for number in range(100_000):
            os.close(os.open(folder / f"file-{number}", os.O_CREAT | os.O_WRONLY))
