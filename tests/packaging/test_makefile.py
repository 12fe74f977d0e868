"""Which Python `make` takes to set the project up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT
from tests.packaging.test_installed import VERSIONS

BROKEN = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'
WITHOUT_VENV = (
    f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.modules[\'ensurepip\'] = None; exec(sys.argv[2])" "$@"\n'
)
USABLE = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The only folder of PATH, which has what make needs, and no Python."""
    for name in ("make", "sh", "echo"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return tmp_path


def put(folder: Path, **programs: str) -> None:
    for name, text in programs.items():
        program = folder / name.replace("_", ".")
        program.write_text(text)
        program.chmod(0o755)


def make(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": str(path)}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def chosen(path: Path, *arguments: str) -> str:
    done = make(path, "--eval=chosen: ; @echo '$(PYTHON)'", "chosen", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_it_is_the_newest_that_runs_and_has_venv(path: Path) -> None:
    assert chosen(path) == ""
    put(path, python3=USABLE)
    assert chosen(path) == "python3"
    put(path, python3_13=BROKEN, python3_12=WITHOUT_VENV, python3_11=USABLE)
    assert chosen(path) == "python3.11"
    put(path, python3_12=USABLE)
    assert chosen(path) == "python3.12"
    assert chosen(path, "PYTHON=python3.11") == "python3.11"


def test_without_one_it_says_what_it_looked_for_and_how_to_name_one(path: Path, tmp_path: Path) -> None:
    setup = ("setup", f"VENV={tmp_path / 'venv'}")
    done = make(path, *setup)
    assert done.returncode == 2
    assert "error: a Python 3.11 to 3.14 that runs and has venv was expected" in done.stderr
    assert "tried python3.14 python3.13 python3.12 python3.11 python3; name one: make PYTHON=" in done.stderr
    put(path, python3_12=WITHOUT_VENV)
    assert "tried python3.12; name one" in make(path, *setup, "PYTHON=python3.12").stderr


def test_it_looks_for_every_version_that_is_supported() -> None:
    looked_for = re.findall(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert looked_for == [" ".join([*(f"python{version}" for version in reversed(VERSIONS)), "python3"])]
