"""What glibc does with memory that requests free."""

import platform
import subprocess
import sys

import pytest

from tests.serve.processes import ROOT

_FAULTS = """
import resource
from fuseline.serve.process.memory import keep_freed_memory, release_freed_memory

def requests():
    for _ in range(20):
        [b"x" * 150_528 for _ in range(32)]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    requests()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (20 * 32)

release_freed_memory()
requests()
print(faults())
keep_freed_memory()
requests()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_requests_cost_no_page_faults_once_freed_memory_is_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    before, after = map(float, done.stdout.split())
    assert after < 0.5 < before
