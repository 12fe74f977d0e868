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
    """Do what `job.found["script"]` says; the first of its words, the rest are passed on."""
    word, *rest = job.found.get("script", ["well"])
    job.found["script"] = rest
    job.found.setdefault("seen", []).append(word)
    print(f"going {word}")
    if word == "not here":
        raise NotHereError("there is no abacus here")
    if word == "unavailable":
        raise BackendUnavailableError("it is not installed: pip install it")
    emit(Row(what=f"before it goes {word}", figures={"x": 1.5}))
    if word == "wrong":
        raise ValueError("in /home/me/net.py")
    if word == "dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(job.found["pid_file"]).write_text(str(child.pid))
        emit(Row(what="started a child"))
        threading.Event().wait()
