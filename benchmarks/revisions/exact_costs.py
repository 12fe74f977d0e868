"""Costs of a revision that hardly vary, whatever else the machine does: instructions and memory of a request.

Instructions come from callgrind (https://valgrind.org/docs/manual/cl-manual.html), which runs the worker on a simulated
CPU, one thread at a time, with a fixed hash seed. Start-up isn't counted: callgrind writes its counts each time the
worker calls `os.getpgid`, so each stretch of requests is counted alone, and the median stretch is taken.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from fuseline.benchmarks.revisions.contenders import read_answer, worker_command
from fuseline.benchmarks.revisions.trees import Tree
from fuseline.benchmarks.revisions.worker import SEGMENTS
from fuseline.serve.errors import BackendError

_CALLGRIND_TIMEOUT_S = 900.0
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def why_no_callgrind() -> str | None:
    """None if valgrind is installed."""
    return None if shutil.which("valgrind") else "valgrind is not installed (apt-get install valgrind)"


def peak_bytes(tree: Tree, files: Path, case: str) -> float:
    """Most memory, in bytes a request, that requests hold at a time. Raises `BackendError` if the case can't run."""
    return float(_run([*worker_command(tree, files), "memory", case], tree)["bytes"])


def instructions(tree: Tree, files: Path, case: str) -> float:
    """Instructions of a request, of all threads. Raises `BackendError` if the case, or valgrind, can't run."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        command = ["valgrind", "--tool=callgrind", "--quiet", "--dump-line=no", "--dump-before=getpgid"]
        command += [f"--callgrind-out-file={counts}", *worker_command(tree, files), "callgrind", case]
        units = int(_run(command, tree)["units"])
        return median(counted_segments(counts)) / units


def counted_segments(counts: Path) -> list[int]:
    """Instructions of each segment from the files that callgrind wrote: `counts`.1, .2 and so on.

    The first holds what came before the first mark; what came after the last mark lies in `counts` itself.
    """
    files = [counts.with_name(f"{counts.name}.{number}") for number in range(2, SEGMENTS + 2)]
    found = [_TOTALS.search(file.read_text(encoding="utf-8", errors="replace")) for file in files if file.is_file()]
    totals = [int(match[1]) for match in found if match]
    if len(totals) != SEGMENTS:
        raise BackendError(
            f"callgrind wrote {len(totals)} counts, expected {SEGMENTS}; it takes them where os.getpgid calls the C "
            "library's getpgid, which a statically linked Python may not"
        )
    return totals


def _run(command: list[str], tree: Tree) -> dict[str, float]:
    environment = tree.environment() | {"PYTHONHASHSEED": "0"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)  # noqa: S603
        with process:
            try:
                answer = read_answer(process, _CALLGRIND_TIMEOUT_S)
                code = process.wait(_CALLGRIND_TIMEOUT_S)
            except BackendError as error:
                process.kill()
                log.seek(0, os.SEEK_SET)
                said = log.read().decode(errors="replace").strip()[-500:]
                raise BackendError(f"{error}{f' ({said})' if said else ''}") from error
        if code:
            raise BackendError(f"{command[0]} ended with {code}")
    return answer
