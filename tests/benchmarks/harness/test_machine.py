import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuseline.benchmarks.harness.cpu_time import cpu_seconds, peak_memory_mb, with_cores_used_by
from fuseline.benchmarks.harness.machine import describe, machine_facts

BUSY = "import sys; print('up', flush=True)\nwhile True: pass"
IDLE_WITH_BUSY_CHILD = (
    f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {BUSY!r}]); print('up', flush=True)\n"
    "sys.stdin.read(); child.kill(); child.wait()"
)


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if code == BUSY:
            process.kill()
        process.wait(30)
        process.stdout.close()


def test_facts_name_machine_and_versions_and_no_host_or_folder() -> None:
    facts = machine_facts()
    assert facts["usable_cores"] >= 1
    assert facts["cpu"]
    assert {"grpcio", "numpy", "onnxruntime"} <= facts["versions"].keys()
    text = json.dumps(facts)
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text.replace("-", " ").split()
    assert f"{facts['usable_cores']} cores" in describe(facts)


def test_cpu_time_of_a_busy_child_is_counted_to_its_parent() -> None:
    with running(IDLE_WITH_BUSY_CHILD) as pid:
        before = cpu_seconds(pid)
        assert before is not None
        while (after := cpu_seconds(pid)) is not None and after < before + 0.1:
            pass
        assert after is not None


def test_cores_used_meanwhile_are_the_named_processes() -> None:
    def work() -> str:
        target = (cpu_seconds(busy) or 0) + 0.1
        while (cpu_seconds(busy) or 0) < target:
            pass
        return "done"

    with running(BUSY) as busy:
        result, cores = with_cores_used_by([busy], work)
    assert result == "done"
    assert 0.05 < cores < 1.5


def test_a_process_that_is_gone_has_no_cpu_time_and_no_memory() -> None:
    with running("print('up')") as pid:
        pass
    assert cpu_seconds(pid) is None
    assert peak_memory_mb(pid) is None


def test_peak_memory_is_of_the_process_not_of_what_started_it() -> None:
    ballast = bytearray(os.urandom(1)) * 300_000_000
    own = peak_memory_mb(os.getpid())
    with running("import sys; print('up', flush=True); sys.stdin.read()") as pid:
        child = peak_memory_mb(pid)
    assert own is not None
    assert child is not None
    assert child < 100 < len(ballast) / 1e6 <= own
