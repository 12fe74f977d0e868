"""Wheels of a bundle, by a fake of pip that asks no index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from deploy.gpu_bundle.lacking import LackingError, Pin
from deploy.gpu_bundle.target import Target
from deploy.gpu_bundle.wheels import PLATFORMS, Wheels, requirements_in, unpacked_bytes

TARGET = Target("3.12", {})


def wheel(path: Path) -> Path:
    name, version = path.name.split("-")[:2]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/vendored.dist-info/METADATA", "Requires-Dist: not-this\n")
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", "Name: x\nRequires-Dist: a>=1\nRequires-Dist: b ; extra == 'c'\n"
        )
    return path


def pin_of(path: Path) -> Pin:
    name, version = path.name.split("-")[:2]
    return Pin(name, version, (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",))


class FakePip:
    """Downloads what is in a folder, builds what is in another."""

    def __init__(self, index: Path, sources: Path) -> None:
        self.index, self.sources = index, sources
        self.calls: list[tuple[str, list[str]]] = []

    def __call__(self, pins: list[Pin], command: str, *flags: str) -> str | None:
        self.calls.append((command, [pin.name for pin in pins]))
        folder = Path(flags[-1].partition("=")[2])
        source = self.index if command == "download" else self.sources
        for pin in pins:
            found = list(source.glob(f"{pin.name}-{pin.version}-*.whl"))
            if not found:
                return f"ERROR: No matching distribution found for {pin}"
            (folder / found[0].name).write_bytes(found[0].read_bytes())
        return None


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePip:
    fake = FakePip(tmp_path / "index", tmp_path / "sources")
    fake.index.mkdir()
    fake.sources.mkdir()

    def pip_of(wheels: Wheels, pins: list[Pin], command: str, *flags: str) -> str | None:
        return fake(pins, command, *flags)

    monkeypatch.setattr(Wheels, "_pip", pip_of)
    return fake


def test_what_is_there_and_sound_is_not_downloaded_again(pip: FakePip, tmp_path: Path) -> None:
    pins = [pin_of(wheel(pip.index / f"{name}-1.0-py3-none-any.whl")) for name in ("a", "b")]
    wheels = Wheels(tmp_path / "wheels", TARGET)
    assert [path.name for path in wheels.of(pins).values()] == ["a-1.0-py3-none-any.whl", "b-1.0-py3-none-any.whl"]
    wheels.of(pins)
    assert pip.calls == [("download", ["a", "b"])]
    (tmp_path / "wheels" / "a-1.0-py3-none-any.whl").write_bytes(b"cut short")
    wheels.of(pins)
    assert pip.calls[1:] == [("download", ["a"])]


def test_what_is_published_as_source_alone_is_built_if_it_is_portable(pip: FakePip, tmp_path: Path) -> None:
    there = pin_of(wheel(pip.index / "a-1.0-py3-none-any.whl"))
    wheel(pip.sources / "pure-2.0-py2.py3-none-any.whl")
    pure = Pin("pure", "2.0", ("sha256:of-the-source",))
    wheels = Wheels(tmp_path / "wheels", TARGET)
    assert wheels.of([there, pure])[pure].name == "pure-2.0-py2.py3-none-any.whl"
    before = len(pip.calls)
    wheels.of([there, pure])
    assert len(pip.calls) == before
    wheel(pip.sources / "compiled-2.0-cp311-cp311-linux_x86_64.whl")
    with pytest.raises(LackingError, match=r"no wheel of compiled==2.0 for Python 3.12, .*it compiles something"):
        wheels.of([Pin("compiled", "2.0", ())])
    with pytest.raises(LackingError, match=r"no wheel of none==1 .*No matching distribution"):
        wheels.of([Pin("none", "1", ())])


def test_requirements_are_those_of_the_wheel_itself(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a-1.0-py3-none-any.whl")
    assert [str(requirement) for requirement in requirements_in(path)] == ["a>=1", 'b; extra == "c"']
    assert unpacked_bytes(path) > 60


def test_no_wheel_asks_for_a_newer_glibc_than_the_target_has() -> None:
    assert "manylinux_2_35_x86_64" in PLATFORMS
    assert "manylinux_2_36_x86_64" not in PLATFORMS
    assert {"manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64"} <= set(PLATFORMS)
