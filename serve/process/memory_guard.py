"""Reports too little memory in a line of the log, before the kernel kills the process without a word.

A container that takes more than its control group allows gets SIGKILL, which nothing can catch, and is started again
and again. How much memory starting takes is known only once it is taken, so a thread watches while a server starts.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from fuseline.serve.errors import InputError

_TAKEN_SHARE = 0.9
"""Share of the limit that memory which the kernel can't take back may reach. The rest is for mapped files, page tables
and requests."""

_LEAST_LIMIT_BYTES = 80 * 2**20
"""Limit below which nothing starts: Python, a runtime and the smallest network take 75 MiB (ONNX Runtime) to 85. It is
refused at once, as importing a runtime in less than it needs goes on for minutes: the kernel drops the pages of its
files and reads them again, before it kills."""

_LEAST_RESERVE_BYTES = 12 * 2**20
"""Bytes below the limit that stay free however low it is. Importing a runtime holds Python's lock for 10 to 30 ms at a
time, in which this thread sees nothing, and takes up to 8 MiB in one of them (ONNX Runtime 6.4, OpenVINO 7.7)."""

_POLL_S = 0.001
"""Seconds between two looks: a runtime takes some MB a millisecond while it loads."""

_LIMIT_FILES = (("sys/fs/cgroup", "memory.max", ""), ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory"))
"""Places where control groups of version 2 and 1 keep limits: their tree, the file, the controller's name in
/proc/self/cgroup."""


class MemoryGuard:
    """Calls `on_shortage` once, from a thread, when this process comes near the limit of its control group.

    Where the limit is too low for any server, `start` calls it itself. The memory of the processes below
    counts too. By default the process then ends with one line and exit code 2. Without a limit nothing is watched.
    """

    def __init__(self, limit_bytes: int | None, on_shortage: Callable[[str], None] | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._on_shortage = on_shortage or _end_process
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        if self._limit_bytes is None:
            return
        if self._limit_bytes < _LEAST_LIMIT_BYTES:
            self._on_shortage(_shortage(unreclaimable_bytes(), self._limit_bytes))
            return
        threading.Thread(target=self._watch, name="fuseline-memory", args=(self._limit_bytes,), daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self, limit_bytes: int) -> None:
        most_bytes = _most_bytes(limit_bytes)
        while not self._stopped.wait(_POLL_S):
            taken_bytes = unreclaimable_bytes()
            if taken_bytes > most_bytes:
                self._on_shortage(_shortage(taken_bytes, limit_bytes))
                return


def check_room(taken_at_once_bytes: int, limit_bytes: int | None) -> None:
    """Raise `InputError`, in the words of `MemoryGuard`, where so many bytes more are beyond what that allows.

    A runtime reads a graph in one call, which holds Python's lock: no thread sees what it takes until it is taken.
    """
    taken_bytes = unreclaimable_bytes()
    if limit_bytes is not None and taken_bytes + taken_at_once_bytes > _most_bytes(limit_bytes):
        raise InputError(_shortage(taken_bytes, limit_bytes))


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process's control groups (version 1 or 2) allow; None if the machine has no more.

    The lowest limit of its group and those above it holds (https://docs.kernel.org/admin-guide/cgroup-v2.html). In a
    container the tree mostly starts at the container's own group, whatever /proc calls it.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for tree, file, controller in _LIMIT_FILES:
            if controller in controllers.split(","):
                within = (root / tree / group.strip("/"), *(root / tree / group.strip("/")).parents)
                limits += [_limit_in(path / file) for path in within if path.is_relative_to(root / tree)]
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((limit for limit in limits if limit is not None and limit < machine_bytes), default=None)


def unreclaimable_bytes() -> int:
    """Return the bytes that this process and those below it hold, without pages of files, which the kernel can drop.

    See proc(5), statm. Pages that a fork still shares count in each process. Only processes that main threads started
    are found.
    """
    return _unreclaimable_bytes(os.getpid())


def _unreclaimable_bytes(pid: int) -> int:
    process = Path("/proc") / str(pid)
    try:
        _, resident, of_files, *_ = (process / "statm").read_text(encoding="ascii").split()
    except OSError:
        # The process has ended.
        return 0
    try:
        children = (process / "task" / str(pid) / "children").read_text(encoding="ascii").split()
    except OSError:
        # Some kernels list none.
        children = []
    own_bytes = (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")
    return own_bytes + sum(_unreclaimable_bytes(int(child)) for child in children)


def _most_bytes(limit_bytes: int) -> float:
    """Return the bytes that a server may take while it starts."""
    return min(_TAKEN_SHARE * limit_bytes, limit_bytes - _LEAST_RESERVE_BYTES)


def _limit_in(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _shortage(taken_bytes: int, limit_bytes: int) -> str:
    is_hopeless = limit_bytes < _LEAST_LIMIT_BYTES
    least = f" and nothing is served in less than {_LEAST_LIMIT_BYTES // 2**20}" if is_hopeless else ""
    return (
        f"too little memory to start: {taken_bytes // 2**20} of the {limit_bytes // 2**20} MiB that this process's "
        f"control group may use are taken{least}; allow it more (docker run --memory, in Kubernetes "
        "resources.limits.memory), or serve smaller batches (--max-batch) or fewer models"
    )


def _end_process(message: str) -> None:
    os.write(2, f"error: {message}\n".encode())
    os._exit(InputError.exit_code)
