"""The walk over requirements, on packages that are made up."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.gpu_bundle.lacking import Assumed, LackingError, Needed, Pin, lacking, read_lock
from deploy.gpu_bundle.roots import CORE, CUDA, GROUPS, roots_of
from deploy.gpu_bundle.target import Target

ROOT = Path(__file__).parents[2]
NEEDS = {
    "server": ["wire>=2", "numbers>=1", "colour; sys_platform == 'win32'"],
    "wire": ["typing-things>=4"],
    "numbers": [],
    "typing-things": [],
    "runtime": ["numbers>=1", "libs~=13.0; extra == 'cuda'"],
    "libs": ["numbers"],
}
LOCKED = {name: Pin(name, "13.1" if name == "libs" else "4.2", ("sha256:00",)) for name in NEEDS}


def requirements_of(pins: Iterable[Pin]) -> dict[Pin, Sequence[Requirement]]:
    return {pin: [Requirement(line) for line in NEEDS[pin.name]] for pin in pins}


def walk(has: dict[str, str | None], **roots: str) -> Needed:
    target = Target("3.12", {name: None if version is None else Version(version) for name, version in has.items()})
    asked = {group: [Requirement(line) for line in lines.split(",")] for group, lines in roots.items()}
    return lacking(asked, target, LOCKED, requirements_of)


def names(needed: Needed, group: str = "core") -> list[str]:
    return [pin.name for pin in needed.pins[group]]


def test_what_is_needed_by_what_is_lacking_is_carried_too() -> None:
    assert names(walk({}, core="server")) == ["server", "wire", "numbers", "typing-things"]


def test_the_walk_ends_at_what_the_target_has_and_tells_what_it_assumes() -> None:
    needed = walk({"wire": "2.5", "numbers": None}, core="server")
    assert names(needed) == ["server"]
    assert needed.assumed == (Assumed("wire>=2", "server==4.2"), Assumed("numbers>=1", "server==4.2"))


def test_what_brings_the_same_module_is_assumed_under_its_own_name() -> None:
    needed = walk({"onnxruntime-gpu": "1.30"}, core="onnxruntime>=1.27", cuda="onnxruntime-gpu>=1.27")
    assert needed.pins == {"core": (), "cuda": ()}
    assert needed.assumed == (Assumed("onnxruntime-gpu>=1.27", "fuseline"),)


def test_what_the_target_has_in_too_old_a_version_is_carried() -> None:
    assert names(walk({"wire": "1.9", "numbers": "1.0"}, core="server")) == ["server", "wire", "typing-things"]


def test_an_extra_is_walked_where_it_is_asked_for() -> None:
    assert names(walk({}, core="runtime")) == ["runtime", "numbers"]
    assert names(walk({}, core="runtime[cuda]")) == ["runtime", "numbers", "libs"]
    assert names(walk({}, core="runtime,runtime[cuda]")) == ["runtime", "numbers", "libs"]


def test_a_later_group_carries_only_what_no_earlier_one_does() -> None:
    needed = walk({}, core="numbers", cuda="runtime[cuda]")
    assert (names(needed), names(needed, "cuda")) == (["numbers"], ["runtime", "libs"])


def test_what_no_lock_has_or_not_in_a_version_that_will_do_is_said() -> None:
    with pytest.raises(LackingError, match="fuseline needs unheard-of, which no lock file has"):
        walk({}, core="unheard-of")
    with pytest.raises(LackingError, match=r"fuseline needs wire>=5, the lock files have wire==4.2; run `make lock`"):
        walk({}, core="wire>=5")


def test_a_lock_of_uv_is_read_for_the_target(tmp_path: Path) -> None:
    (tmp_path / "some.lock").write_text(
        "# made by uv\n"
        "Some_Name==1.2.3 ; python_full_version >= '3.12' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "    # via x\n"
        "old==1 ; python_full_version < '3.12' \\\n    --hash=sha256:cc\n"
    )
    pins = read_lock(tmp_path / "some.lock", Target("3.12", {}))
    assert pins == {"some-name": Pin("some-name", "1.2.3", ("sha256:aa", "sha256:bb"))}


def test_the_projects_locks_have_all_that_its_groups_need() -> None:
    target = Target("3.12", {})
    locked = {
        name: pin
        for lock in ("requirements-serve-gpu.lock", "requirements.lock")
        for name, pin in read_lock(ROOT / lock, target).items()
    }
    roots = roots_of(ROOT / "pyproject.toml")
    assert tuple(roots) == GROUPS
    needed = lacking(roots, target, locked, lambda pins: {pin: [] for pin in pins})
    assert {"grpcio", "torch", "cuda-bindings", "pytest", "pytest-asyncio"} <= set(names(needed))
    assert names(needed, CUDA) == ["onnxruntime-gpu"]
    assert all(pin.hashes for pins in needed.pins.values() for pin in pins)
    assert not {"mypy", "ruff", "tensorrt-cu13"} & set(names(needed, CORE))
