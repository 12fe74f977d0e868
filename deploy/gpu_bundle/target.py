"""The machine that a bundle is for: its Python, and what it has installed."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

GLIBC = (2, 35)
"""The oldest that wheels may ask for, and the target must have."""
_SAME_MODULE = {"onnxruntime": ("onnxruntime-gpu",)}
"""Package to others that bring its module: to carry it beside them would hide them."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(==(?P<version>[^\s=]+)| *@ *\S.*)?")


class TargetError(Exception):
    """The list can't be read; the message is for people."""


@dataclass(frozen=True, slots=True)
class Target:
    """An x86-64 Linux with CPython."""

    python: str
    """`3.12`"""
    packages: dict[str, Version | None]
    """Canonical name to version; None: it is there, in a version that isn't known and is taken to do."""

    def met_by(self, requirement: Requirement) -> str | None:
        """The package there that meets `requirement`, as far as the list tells; None: none does."""
        name = canonicalize_name(requirement.name)
        for candidate in (name, *_SAME_MODULE.get(name, ())):
            if candidate in self.packages:
                version = self.packages[candidate]
                if version is None or requirement.specifier.contains(version, prereleases=True):
                    return candidate
        return None

    def wants(self, marker: Marker | None, extra: str = "") -> bool:
        """Whether what carries `marker` is for this machine."""
        return marker is None or marker.evaluate({**self._environment(), "extra": extra})

    def _environment(self) -> dict[str, str]:
        here = {key: str(value) for key, value in default_environment().items()}
        return here | {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def read_target(path: Path, python: str) -> Target:
    """Read a list in the form of `pip list --format=freeze`; `#` begins a comment, a name may stand alone.

    Raises:
        TargetError: `python` is no version, the file can't be read, a line is no package, or a package is listed twice.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise TargetError(f"GPU_PYTHON={python}: a version such as 3.12 was expected")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path} can't be read: {error}") from error
    packages: dict[str, Version | None] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip() if " @ " not in line else line.strip()
        if not text:
            continue
        name, version = _package(text, f"{path}, line {number}")
        if name in packages:
            raise TargetError(f"{path}, line {number}: {name} is listed twice")
        packages[name] = version
    return Target(python, packages)


def _package(text: str, where: str) -> tuple[str, Version | None]:
    found = _LINE.fullmatch(text)
    if found is None:
        raise TargetError(
            f"{where}: {text!r}; NAME==VERSION or NAME was expected, as `pip list --format=freeze` prints"
        )
    try:
        # A name, by the rules of a requirement.
        name = canonicalize_name(Requirement(found["name"]).name)
        return name, None if found["version"] is None else Version(found["version"])
    except (InvalidRequirement, InvalidVersion) as error:
        raise TargetError(f"{where}: {text!r}: {error}") from error
