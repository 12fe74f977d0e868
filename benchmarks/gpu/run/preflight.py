"""What would make a run's figures wrong, or lose them, found before it begins."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.contender import Device
from fuseline.benchmarks.gpu.device import gpu_facts
from fuseline.serve.backends.gpu.nvidia_driver import Driver, nvidia_driver
from fuseline.serve.errors import BackendUnavailableError, InputError

MOST_HELD_MIB = 1024
"""Largest use of the GPU's memory before the run: a driver keeps some hundred MiB for itself."""
LEAST_FREE_BYTES = 2 * 10**9
"""Space for the packages and what the runtimes compile, on the disk of temporary files."""


def check_device(
    device: Device,
    *,
    shared: bool = False,
    driver: Callable[[], Driver | None] = nvidia_driver,
    facts: Callable[[], dict[str, Any] | None] = gpu_facts,
) -> None:
    """Check that the GPU is there and that nobody else uses it. `shared`: go on beside others.

    Raises:
        BackendUnavailableError: there is no driver, no GPU, or others hold its memory.
    """
    if device == "cpu":
        return
    rehearse = "; --device cpu rehearses the run without a GPU"
    found = driver()
    if found is None:
        raise BackendUnavailableError(f"no NVIDIA driver is installed on this machine{rehearse}")
    if not found.gpus:
        raise BackendUnavailableError(f"the NVIDIA driver is here, but {found.problem}{rehearse}")
    told = facts() or {}
    held, total = told.get("memory_used_mib"), told.get("memory_mib")
    if isinstance(held, int | float) and held > MOST_HELD_MIB and not shared:
        raise BackendUnavailableError(
            f"others hold {held:.0f} of {total or 'unknown'} MiB of the memory of {found.gpus[0].name}: large batches "
            "may not fit, and no figure would mean anything; end them, or --shared-gpu measures beside them"
        )


def check_disk(folders: tuple[Path, ...], least_bytes: int = LEAST_FREE_BYTES) -> None:
    """Raise `InputError` if one of `folders` has less than `least_bytes` free."""
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < least_bytes:
            raise InputError(
                f"{folder} has {free / 1e6:.0f} MB free, a run may need {least_bytes / 1e6:.0f}; make room, or name "
                "another disk with --out and TMPDIR"
            )
