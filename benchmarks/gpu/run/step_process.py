"""A step in a process of its own, which is ended with all that it started when its time is over."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.run.job import Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row, StepStatus
from fuseline.benchmarks.harness.cpu_time import process_stats
from fuseline.benchmarks.harness.results import without_folders
from fuseline.benchmarks.harness.worker_process import exit_words
from fuseline.serve.errors import BackendUnavailableError

_END_S = 5.0
_POLL_S = 0.02
_GRACE_S = 3.0
"""Time from the deadline that a step is told to its end, for what it has to say last."""


def run_step(module: str, job: Job, log: Path, on_row: Callable[[Row], None]) -> tuple[StepStatus, str | None]:
    """Run `module.run(job, emit)`; return how it ended and why. What it found until then is in `job.found`.

    Its output goes to the end of `log`. It never outlasts the job's deadline by more than `_GRACE_S`, and when this
    returns or raises, nothing that it started is left.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, module, job, log))
    process.start()
    theirs.close()
    try:
        return _follow(ours, process, job, on_row)
    finally:
        ours.close()
        _end(process)


def _follow(
    connection: Connection, process: Any, job: Job, on_row: Callable[[Row], None]
) -> tuple[StepStatus, str | None]:
    while True:
        left_s = max(0.0, job.deadline + _GRACE_S - time.monotonic())
        try:
            if not connection.poll(left_s):
                return "out of time", "its time was over; what it had found is kept"
            said, found = connection.recv()
        except (EOFError, OSError):
            process.join(_END_S)
            return "failed", f"its process died{exit_words(process.exitcode)}; the log has what it said"
        job.found.update(found)
        if not isinstance(said, Row):
            status, reason = said
            return status, reason
        on_row(said)


def _end(process: Any) -> None:
    """End the process and its group, which it leads, and wait for their memory and their GPU to be given back."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # It has not become the leader yet, or nothing is left.
        process.kill()
    process.join()
    given_up = time.monotonic() + _END_S
    while _group_lives(process.pid) and time.monotonic() < given_up:
        time.sleep(_POLL_S)


def _group_lives(group: int) -> bool:
    """Whether a process of the group is still there, but for those that only wait to be collected."""
    return any(int(values[2]) == group and values[0] not in "ZX" for values in process_stats().values())


def _work(connection: Connection, module: str, job: Job, log: Path) -> None:
    os.setpgid(0, 0)
    # The parent alone decides; it ends this group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status: StepStatus = "done"
    reason = None
    try:
        import_module(module).run(job, lambda row: connection.send((row, job.found)))
    except (NotHereError, BackendUnavailableError) as error:
        status, reason = "not here", str(error)
    # Whatever a runtime raises is one step's failure, and not the run's; the log has its traceback.
    except Exception as error:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        status, reason = "failed", f"{type(error).__name__}: {error}"
    connection.send(((status, None if reason is None else without_folders(reason)), job.found))
    connection.close()
    # Runtimes that tear down their threads take seconds, and nothing is left to save.
    sys.stdout.flush()
    os._exit(0)
