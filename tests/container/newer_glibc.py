"""Programs that need a newer C library than the machine has, run with that of a newer Debian."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.container.podman import WORK

_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1")
_SUITE = "trixie"
_TRIPLET = "usr/lib/x86_64-linux-gnu"


def runnable(program: Path) -> list[str]:
    """Return the command that runs `program`: itself, or Debian's loader with Debian's libraries in build/.

    They come by debootstrap, which `tests.container.podman.install_tools` installs.
    """
    if _runs([program]):
        return [str(program)]
    libraries = WORK / _SUITE / _TRIPLET
    if not libraries.is_dir():
        _unpack(WORK / _SUITE)
    command = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(program)]
    assert _runs(command), f"{program} doesn't run with the libraries of Debian {_SUITE}"
    return command


def _runs(command: Sequence[str | Path]) -> bool:
    done = subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def _unpack(root: Path) -> None:
    downloads, partial = root.with_suffix(".downloads"), root.with_suffix(".partial")
    for folder in (downloads, partial):
        shutil.rmtree(folder, ignore_errors=True)
    include = f"--include={','.join(_PACKAGES)}"
    command = ["debootstrap", "--variant=minbase", "--download-only", include, _SUITE, str(downloads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    for package in _PACKAGES:
        (archive,) = (downloads / "var/cache/apt/archives").glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, partial], check=True, timeout=60)
    shutil.rmtree(downloads)
    partial.rename(root)
