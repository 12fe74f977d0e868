"""Steps that a test makes go well or wrong, each in the process that a real one has."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from fuseline.benchmarks.gpu.run.job import Emit, Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.serve.errors import BackendUnavailableError


def run(job: Job, emit: Emit) -> None:
    """Do what `job.found["play"]` says; the first of its words, the rest are passed on."""
    played, *rest = job.found.get("play", ["well"])
    job.found["play"] = rest
    job.found.setdefault("seen", []).append(played)
    print(f"playing {played}")
    if played == "not here":
        raise NotHereError("there is no abacus here")
    if played == "unavailable":
        raise BackendUnavailableError("it is not installed: pip install it")
    emit(Row(what=f"before it goes {played}", figures={"x": 1.5}))
    if played == "wrong":
        raise ValueError("in /home/me/net.py")
    if played == "dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    if played == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(job.found["pid_file"]).write_text(str(child.pid))
        emit(Row(what="started a child"))
        threading.Event().wait()
