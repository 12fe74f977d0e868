"""CPU time and memory of other processes, from Linux's /proc (man 5 proc)."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PROC = Path("/proc")
_IDLE_CORES = 0.2
_IDLE_LOOK_S = 0.25
"""Seconds over which CPU time, known in steps of 10 ms, is counted: four steps make 0.16 of a core."""


def cpu_seconds(pid: int) -> float | None:
    """User and system time of process `pid` and its living descendants, to 10 ms; None where it can't be read."""
    family = family_stats(pid)
    ticks = sum(int(values[11]) + int(values[12]) for values in family.values())
    return ticks / os.sysconf("SC_CLK_TCK") if family else None


def family_stats(pid: int) -> dict[int, list[str]]:
    """The fields of `stat` behind the name, of `pid` and its living descendants by process id; {} if it is gone."""
    fields = process_stats()
    if pid not in fields:
        return {}
    family, fresh = {pid}, {pid}
    while fresh:
        fresh = {its_pid for its_pid, values in fields.items() if int(values[1]) in fresh} - family
        family |= fresh
    return {its_pid: fields[its_pid] for its_pid in family}


def process_stats() -> dict[int, list[str]]:
    """The fields of `stat` behind the name, of every process by its id: state, parent, group and so on."""
    stats = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            stats[int(folder.name)] = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    # The second field is the name in brackets, which may hold anything, blanks and brackets too.
    return {its_pid: text.rpartition(")")[2].split() for its_pid, text in stats.items()}


def with_cores_used_by(pids: Sequence[int], work: Callable[[], T]) -> tuple[T, float]:
    """Result of `work`, and how many cores the processes `pids` used meanwhile: CPU seconds a second."""
    before, started = [cpu_seconds(pid) for pid in pids], time.monotonic()
    result = work()
    elapsed = time.monotonic() - started
    after = [cpu_seconds(pid) for pid in pids]
    used = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    return result, sum(used) / elapsed


def becomes_idle(pid: int, patience_s: float) -> bool:
    """Wait until process `pid` and its descendants use under a fifth of a core; whether that came in `patience_s`.

    True where its CPU time can't be read, as when it is gone.
    """
    deadline = time.monotonic() + patience_s
    while True:
        _, cores = with_cores_used_by([pid], lambda: time.sleep(_IDLE_LOOK_S))
        if cores < _IDLE_CORES:
            return True
        if time.monotonic() > deadline:
            return False


def peak_memory_mb(pid: int) -> float | None:
    """Largest resident set of `pid` so far in MB (10^6 bytes); None where it can't be read.

    Not getrusage's ru_maxrss: that one survives exec, so a child would show its parent's size at the fork.
    """
    try:
        lines = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
