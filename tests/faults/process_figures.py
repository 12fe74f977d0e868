"""What a server's processes hold: memory and descriptors, read from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Figures:
    """The sums of a process and those below it."""

    resident_bytes: int
    """Resident memory; pages that processes share count in each."""
    files: int
    """Open descriptors."""
    threads: int

    def __str__(self) -> str:
        return f"{self.resident_bytes / 2**20:.1f} MiB, {self.files} descriptors, {self.threads} threads"


def figures_of(pid: int) -> Figures:
    """The figures of process `pid` and of all below it."""
    pids = [pid]
    for its in pids:
        for children in (Path("/proc") / str(its) / "task").glob("*/children"):
            pids += map(int, children.read_text().split())
    processes = [Path("/proc") / str(its) for its in pids]
    return Figures(
        sum(int((process / "statm").read_text().split()[1]) * PAGE_BYTES for process in processes),
        sum(len(os.listdir(process / "fd")) for process in processes),  # noqa: PTH208 names alone are counted
        sum(len(os.listdir(process / "task")) for process in processes),  # noqa: PTH208
    )
