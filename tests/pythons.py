"""Interpreters of other versions than the tests' own, and uv, which makes environments of them."""

import shutil
import subprocess
import sys
from pathlib import Path

UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"


def uv(*arguments: object, input: str | None = None) -> str:
    """Run `uv ARGUMENTS`, which must succeed; return its stdout."""
    command = [UV, *map(str, arguments)]
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def find_python(version: str) -> Path | None:
    """Return an interpreter of `version`, such as 3.12, that runs; None where there is none."""
    found = subprocess.run([UV, "python", "find", "--system", version], capture_output=True, text=True, check=False)
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for place in filter(None, (shutil.which(f"python{version}"), found.stdout.strip(), *of_pyenv)):
        # A shim may be there for a version that isn't.
        said = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith(f"Python {version}."):
            return Path(place)
    return None
