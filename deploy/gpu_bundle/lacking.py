"""Which packages a target lacks: a walk over requirements that ends at what it has.

Versions are those of the project's lock files, which the tests ran with. What the target has in a version that will do
is not carried, and what that needs itself is taken to be there.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.gpu_bundle.target import Target


class LackingError(Exception):
    """Something is needed that no lock file has; the message is for people."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock file."""

    name: str
    """Canonical."""
    version: str
    hashes: tuple[str, ...]
    """`sha256:…` of its files."""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Assumed:
    """What the target is taken to have, to be checked there."""

    requirement: str
    """`numpy>=2.0`"""
    needed_by: str


@dataclass(frozen=True, slots=True)
class Needed:
    """What the walk found."""

    pins: dict[str, tuple[Pin, ...]]
    """Group to the packages to carry, in the order in which they were found; each stands in one group."""
    assumed: tuple[Assumed, ...]


def read_lock(path: Path, target: Target) -> dict[str, Pin]:
    """The packages of a lock file that uv wrote, by canonical name; those that are not for `target` are left out."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    pins = {}
    for line in text.splitlines():
        words = line.partition(" #")[0].strip()
        if not words or words.startswith(("#", "-")):
            continue
        requirement = Requirement(words.partition("--hash=")[0].strip())
        if target.wants(requirement.marker):
            (specifier,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            pins[name] = Pin(name, specifier.version, tuple(re.findall(r"--hash=(\S+)", words)))
    return pins


def lacking(
    roots: dict[str, Sequence[Requirement]],
    target: Target,
    locked: dict[str, Pin],
    requirements_of: Callable[[Iterable[Pin]], dict[Pin, Sequence[Requirement]]],
) -> Needed:
    """Walk from `roots`, group by group: what an earlier group carries isn't carried again.

    Args:
        roots: group to what it is for.
        target: what is there already.
        locked: canonical name to the version to carry.
        requirements_of: the requirements of packages, read from their wheels; called once for each depth of the walk.

    Raises:
        LackingError: a package is lacking that `locked` doesn't have, or has in a version that doesn't do.
    """
    carried: set[str] = set()
    assumed: dict[Assumed, None] = {}
    groups: dict[str, tuple[Pin, ...]] = {}
    for group, requirements in roots.items():
        found: list[Pin] = []
        waiting = deque((requirement, "fuseline") for requirement in requirements if target.wants(requirement.marker))
        seen: set[tuple[str, str]] = set()
        while waiting:
            fresh: dict[Pin, set[str]] = {}
            while waiting:
                requirement, needed_by = waiting.popleft()
                there = None if canonicalize_name(requirement.name) in carried else target.met_by(requirement)
                if there is not None:
                    assumed[Assumed(f"{there}{requirement.specifier}", needed_by)] = None
                    continue
                pin = _pin_for(requirement, needed_by, locked)
                if pin.name not in carried:
                    carried.add(pin.name)
                    found.append(pin)
                unseen = {extra for extra in ("", *requirement.extras) if (pin.name, extra) not in seen}
                seen |= {(pin.name, extra) for extra in unseen}
                if unseen:
                    fresh.setdefault(pin, set()).update(unseen)
            for pin, needs in requirements_of(fresh).items() if fresh else ():
                waiting += [
                    (need, str(pin)) for need in needs if any(target.wants(need.marker, extra) for extra in fresh[pin])
                ]
        groups[group] = tuple(found)
    return Needed(groups, tuple(assumed))


def _pin_for(requirement: Requirement, needed_by: str, locked: dict[str, Pin]) -> Pin:
    """What to carry for `requirement`."""
    pin = locked.get(canonicalize_name(requirement.name))
    if pin is None:
        raise LackingError(f"{needed_by} needs {requirement}, which no lock file has; run `make lock`")
    if not requirement.specifier.contains(pin.version, prereleases=True):
        raise LackingError(f"{needed_by} needs {requirement}, the lock files have {pin}; run `make lock`")
    return pin
