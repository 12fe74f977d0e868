"""Limits of control groups, and what is said before they are reached."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fuseline.serve.errors import InputError
from fuseline.serve.process.memory_guard import MemoryGuard, check_room, memory_limit_bytes, unreclaimable_bytes
from tests.serve.processes import ROOT

MIB = 2**20
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def tree(root: Path, group: str, **limits: str) -> Path:
    """A file system with /proc/self/cgroup and the limits in its files; __ in a name stands for /."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path = path.parent / ("memory.max" if path.name == "v2" else "memory.limit_in_bytes")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_in_a_container(tmp_path: Path) -> None:
    assert memory_limit_bytes(tree(tmp_path, "0::/\n", v2=f"{96 * MIB}\n")) == 96 * MIB


def test_version_2_takes_the_lowest_limit_of_the_groups_above(tmp_path: Path) -> None:
    limits = {"a__b__c__v2": "max\n", "a__b__v2": f"{64 * MIB}\n", "a__v2": f"{80 * MIB}\n"}
    assert memory_limit_bytes(tree(tmp_path, "0::/a/b/c\n", **limits)) == 64 * MIB


def test_version_1_whose_group_has_another_name_outside(tmp_path: Path) -> None:
    group = "5:devices:/podman/x\n4:memory:/podman/x\n0::/podman/x\n"
    assert memory_limit_bytes(tree(tmp_path, group, memory__v1=f"{64 * MIB}\n")) == 64 * MIB


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    assert memory_limit_bytes(tree(tmp_path, "4:memory:/\n0::/\n", v2=limit, memory__v1=limit)) is None


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None


def test_memory_that_is_taken_is_seen() -> None:
    before = unreclaimable_bytes()
    block = os.urandom(64 * MIB)
    assert unreclaimable_bytes() - before > 60 * MIB
    del block


def test_memory_of_a_process_below_is_counted() -> None:
    before = unreclaimable_bytes()
    code = "block = bytes([1]) * (64 * 2**20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert unreclaimable_bytes() - before > 60 * MIB
        child.communicate(b"\n")


def test_near_the_limit_the_process_ends_with_a_line_and_2() -> None:
    code = (
        "import threading\n"
        "from fuseline.serve.process.memory_guard import MemoryGuard, unreclaimable_bytes\n"
        "limit = unreclaimable_bytes() + 96 * 2**20\n"
        "MemoryGuard(limit).start()\n"
        "blocks = [bytes([1]) * 2**20 for _ in range(128)]\n"
        "threading.Event().wait(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: too little memory to start: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_one_call_takes_at_once_is_refused_before_it() -> None:
    limit = 10 * (unreclaimable_bytes() + 16 * MIB)
    check_room(limit // 2, limit)
    check_room(limit, None)
    with pytest.raises(InputError, match=r"^too little memory to start: \d+ of the \d+ MiB "):
        check_room(limit, limit)


def test_what_one_import_takes_unseen_stays_free() -> None:
    said = threading.Event()
    shortages: list[str] = []

    def on_shortage(message: str) -> None:
        shortages.append(message)
        said.set()

    # More than a tenth of the limit is free, and less than a runtime's import takes before the thread can look again.
    block = os.urandom(max(0, 80 * MIB - unreclaimable_bytes()))
    MemoryGuard(unreclaimable_bytes() + 11 * MIB, on_shortage).start()
    assert said.wait(10)
    assert len(shortages) == 1
    del block


def test_a_limit_that_is_too_low_for_any_server_is_refused_before_anything_is_imported() -> None:
    shortages: list[str] = []
    MemoryGuard(64 * MIB, shortages.append).start()
    assert len(shortages) == 1
    assert "of the 64 MiB" in shortages[0]


def test_a_guard_that_was_stopped_says_nothing() -> None:
    shortages: list[str] = []
    guard = MemoryGuard(max(80 * MIB, unreclaimable_bytes()), shortages.append)
    guard.stop()
    guard.start()
    assert shortages == []
