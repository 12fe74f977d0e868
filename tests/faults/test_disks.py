"""Disks that are full or read-only, below a server and below what writes its files."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fuseline.serve.client import Client
from tests.fakes.colours import plain
from tests.serve.disks import fill, mounted, use_up_inodes
from tests.serve.processes import FAST, ROOT, finished, free_port, server_process

WORKERS = ("--workers", 2)

NOTHING_WRITABLE = """
mount -t tmpfs -o size=4k fuseline-test /dev/shm && head -c 4096 /dev/zero > /dev/shm/filling || exit 77
for folder in / /tmp /var/tmp; do
    if mountpoint -q "$folder"; then mount -o remount,bind,ro "$folder" || exit 77; fi
done
exec "$0" "$@"
"""


@pytest.fixture
def python_without_disk(tmp_path: Path) -> Path:
    """Python in a mount namespace of its own, in which no file can be written and /dev/shm is full."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{NOTHING_WRITABLE}' {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    return python


def run(python: Path, *arguments: object) -> tuple[int, str, str]:
    """Run `python -m serve ARGUMENTS`, which ends by itself; return exit code, stdout, stderr."""
    done = subprocess.run(
        [python, "-m", "serve", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("workers", [(), WORKERS], ids=["one process", "workers"])
def test_a_server_needs_no_file_to_write_to(
    package: Path, python_without_disk: Path, workers: Sequence[object]
) -> None:
    flags = (*FAST, *workers, "--http-port", free_port(), "--log-format", "json")
    with server_process(package, *flags, python=python_without_disk) as server:
        with Client(server.address) as client:
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"
        server.process.terminate()
        code, stderr = server.end()
    assert code == 0, stderr
    assert "WARNING" not in stderr


def test_workers_of_a_unix_socket_have_theirs_beside_it_where_temporary_files_cannot_be_written(
    package: Path, python_without_disk: Path, folder: Path
) -> None:
    with mounted(folder):
        # A file system of its own, which stays writable in the namespace.
        with server_process(
            package, *FAST[2:], *WORKERS, "--listen", f"unix:{folder}/its.sock", python=python_without_disk
        ) as server:
            assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == [".fuseline", "its.sock"]
            with Client(server.address) as client:
                assert client.classify(plain("green")).results[0].predictions[0].label == "green"
            server.process.terminate()
            code, stderr = server.end()
        assert code == 0, stderr
        assert list(folder.iterdir()) == []


def test_where_workers_cannot_have_sockets_one_line_says_what_to_do(package: Path, python_without_disk: Path) -> None:
    code, stdout, stderr = run(python_without_disk, package, *FAST[2:], *WORKERS, "--listen", "unix-abstract:fl-test")
    assert (code, stdout) == (2, "")
    assert re.fullmatch(r"error: .*none can be made \(.*\); set TMPDIR to a folder .*\n", stderr)


@pytest.mark.parametrize("workers", [(), WORKERS], ids=["one process", "workers"])
def test_a_unix_socket_without_an_inode_left_is_one_line_and_2(
    package: Path, folder: Path, workers: Sequence[object]
) -> None:
    with mounted(folder, "size=1m,nr_inodes=16"):
        use_up_inodes(folder)
        before = sorted(folder.iterdir())
        code, stdout, stderr = finished(package, *FAST[2:], *workers, "--listen", f"unix:{folder}/its.sock")
        assert (code, stdout) == (2, "")
        assert re.fullmatch(r"error: .*its\.sock \(No space left on device\)\n", stderr)
        assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("full", [fill, use_up_inodes], ids=["no byte", "no inode"])
def test_a_token_that_a_full_disk_does_not_take_is_not_told_and_the_old_file_stays(
    folder: Path, full: Callable[[Path], None]
) -> None:
    def new_token(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fuseline", "token", "new", "--name", name, "--file", folder / "tokens"]
        return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)

    with mounted(folder, "size=64k,nr_inodes=16"):
        assert new_token("first").returncode == 0
        before = (folder / "tokens").read_bytes()
        full(folder)
        names = sorted(folder.iterdir())
        refused = new_token("second")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert re.fullmatch(r"error: .*tokens can't be written: No space left on device\n", refused.stderr)
        assert (folder / "tokens").read_bytes() == before
        assert sorted(folder.iterdir()) == names
