"""Wheels for a target, downloaded by pip against the hashes of the lock files, and what they say of themselves."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from deploy.gpu_bundle.lacking import LackingError, Pin
from deploy.gpu_bundle.target import GLIBC, Target

# The tags of PEP 600 down to the oldest, and their older names (PEP 513, 571, 599); pip takes each literally.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC[1], 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
)


class Wheels:
    """A folder of one target's wheels, into which what is asked for is downloaded once."""

    def __init__(self, folder: Path, target: Target) -> None:
        self._folder = folder
        self._built = folder / "built"
        """Those that were made here, whose sums no lock file has."""
        self._target = target
        self._built.mkdir(parents=True, exist_ok=True)

    def of(self, pins: Iterable[Pin]) -> dict[Pin, Path]:
        """The wheel of each pin; what isn't in the folder is downloaded, its hash checked.

        Raises:
            LackingError: there is no wheel for the target, or the index can't be reached.
        """
        found = {pin: self._found(pin) for pin in pins}
        if missing := [pin for pin, path in found.items() if path is None]:
            self._download(missing)
            found |= {pin: self._found(pin) for pin in missing}
        if lost := [str(pin) for pin, path in found.items() if path is None]:
            raise LackingError(f"pip brought {', '.join(lost)} under another name than expected, or with other sums")
        return {pin: path for pin, path in found.items() if path is not None}

    def requirements_of(self, pins: Iterable[Pin]) -> dict[Pin, Sequence[Requirement]]:
        """What each pin's wheel requires (core metadata, Requires-Dist), those of its extras included."""
        return {pin: requirements_in(path) for pin, path in self.of(pins).items()}

    def _found(self, pin: Pin) -> Path | None:
        for path in (*self._folder.glob("*.whl"), *self._built.glob("*.whl")):
            name, version, _, _ = parse_wheel_filename(path.name)
            if (str(name), str(version)) == (pin.name, pin.version):
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if path.parent == self._built or f"sha256:{digest}" in pin.hashes:
                    return path
                # Cut short, or changed since it came.
                path.unlink()
        return None

    def _download(self, pins: Sequence[Pin]) -> None:
        if self._pip(pins, *self._for_target()) is None:
            return
        # One of them has no such wheel.
        for pin in pins:
            if (said := self._pip([pin], *self._for_target())) is not None:
                self._build(pin, said)

    def _for_target(self) -> list[str]:
        flags = ["download", "--only-binary=:all:", "--implementation=cp", f"--python-version={self._target.python}"]
        return [*flags, *(f"--platform={platform}" for platform in PLATFORMS), f"--dest={self._folder}"]

    def _build(self, pin: Pin, said: str) -> None:
        """Make a wheel of what is published as source alone, if it holds nothing that is compiled."""
        with tempfile.TemporaryDirectory() as folder:
            refused = self._pip([pin], "wheel", f"--wheel-dir={folder}")
            wheels = list(Path(folder).glob("*-none-any.whl"))
            if refused is not None or not wheels:
                raise LackingError(
                    f"no wheel of {pin} for Python {self._target.python}, x86-64 and glibc {GLIBC[0]}.{GLIBC[1]} "
                    f"({said}), nor can a portable one be made of its source ({refused or 'it compiles something'})"
                )
            shutil.copy(wheels[0], self._built)

    def _pip(self, pins: Sequence[Pin], command: str, *flags: str) -> str | None:
        """Run pip for `pins`, whose hashes it checks; None, or the last line of what it says against it."""
        lines = [f"{pin} {' '.join(f'--hash={digest}' for digest in pin.hashes)}\n" for pin in pins]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.writelines(lines)
            requirements.flush()
            common = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
            asked = [sys.executable, "-m", "pip", command, *common, *flags, f"--requirement={requirements.name}"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if not done.returncode:
            return None
        return (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]


def requirements_in(wheel: Path) -> list[Requirement]:
    """The Requires-Dist lines of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [
            name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        ]
        headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    return [Requirement(line) for line in headers.get_all("Requires-Dist", [])]


def unpacked_bytes(archive: Path) -> int:
    """What the files in a wheel or zip take when they are unpacked."""
    with zipfile.ZipFile(archive) as opened:
        return sum(entry.file_size for entry in opened.infolist())
