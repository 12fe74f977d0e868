"""Fuseline as users install it, wheel and sdist, in a fresh environment of each Python that it supports."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, Distributions
from tests.packaging.users_folder import UsersFolder
from tests.pythons import find_python, uv

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_CLASSIFIER = "Programming Language :: Python :: "
VERSIONS = [line.removeprefix(_CLASSIFIER) for line in PROJECT["classifiers"] if line.startswith(_CLASSIFIER)]
EXPORT_VERSION = "3.11"

_TYPED_USE = """
from pathlib import Path

from fuseline import Answer, AsyncClient, Client, FuselineError, load_package

def label(address: str, path: Path) -> str:
    with Client(address) as client:
        answer: Answer = client.classify(path, top_k=5)
    return answer.results[0].predictions[0].label

async def probability(address: str, image: bytes) -> float | None:
    async with AsyncClient(address) as client:
        try:
            return (await client.classify(image)).results[0].predictions[0].probability
        except FuselineError:
            return None

def labels(folder: Path) -> tuple[str, ...]:
    return load_package(folder).manifest.labels
"""
_WRONG_USE = "from fuseline import Client\n\nanswer: int = Client().classify(b'')\n"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(params=["wheel", "sdist"])
def distribution(request: pytest.FixtureRequest, distributions: Distributions) -> Path:
    """What is installed."""
    path: Path = getattr(distributions, request.param)
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_it_works_where_it_is_installed(
    version: str, distribution: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    interpreter = find_python(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    exports = version == EXPORT_VERSION
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    uv("venv", "--quiet", "--python", interpreter, environment)
    lock = ROOT / f"requirements-{'export' if exports else 'serve-cpu'}.lock"
    uv("pip", "sync", "--quiet", "--python", python, "--require-hashes", lock)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    before = set(site_packages.iterdir())
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", distribution)
    uv("pip", "check", "--python", python)
    added = {path.name for path in set(site_packages.iterdir()) - before}
    assert added == {"fuseline", f"fuseline-{PROJECT['version']}.dist-info"}

    folder = tmp_path / "users"
    folder.mkdir()
    users = UsersFolder(folder, python, fuseline=(str(python.with_name("fuseline")),))
    users.fill()
    users.check_serving()
    if exports:
        users.check_export(tiny_checkpoint)
        assert "Usage:" in users.run(python.with_name("export"), "--help")
        _check_types(folder, python)


def _check_types(folder: Path, python: Path) -> None:
    """Hold a user's programs against the types of what is installed for `python`."""
    for source, code, told in ((_TYPED_USE, 0, "Success"), (_WRONG_USE, 1, '"Answer"')):
        (folder / "program.py").write_text(source)
        mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "program.py"]
        # The folder's own modules and this checkout's are not what is looked at.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
        done = subprocess.run(
            mypy, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert told in done.stdout
