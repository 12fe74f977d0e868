"""What the wheel and the sdist hold, and that a user's own modules never take the place of Fuseline's."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, Distributions
from tests.packaging.users_folder import OWN_NAMES, UsersFolder
from tests.pythons import uv


@pytest.fixture(scope="session")
def unpacked(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(distributions.wheel).extractall(folder)
    return folder


@pytest.fixture
def users_folder(unpacked: Path, tmp_path: Path) -> UsersFolder:
    """A user's folder, in which the wheel's files are found, and not those of this checkout."""
    users = UsersFolder(tmp_path, Path(sys.executable), search_path=(unpacked,))
    users.fill()
    found = users.run("-c", "import fuseline.serve; print(fuseline.serve.__file__)")
    assert Path(found.strip()) == unpacked / "fuseline" / "serve" / "__init__.py"
    return users


def test_the_wheel_installs_fuseline_alone_and_all_of_it(unpacked: Path) -> None:
    (about,) = unpacked.glob("fuseline-*.dist-info")
    assert {path.name for path in unpacked.iterdir()} == {"fuseline", about.name}
    assert (unpacked / "fuseline" / "py.typed").is_file()
    for folder in OWN_NAMES:
        sources = {
            path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".j2", ".proto")
        }
        packed = unpacked / "fuseline"
        assert {path for path in sources if not (packed / path).is_file()} == set()


def test_the_wheel_has_every_file_that_manifests_are_made_of(unpacked: Path) -> None:
    """Links among them are files of their own there."""
    for folder in ("kubernetes", "kserve", "helm"):
        ours = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "deploy" / folder).rglob("*.*")}
        assert ours
        packed = {name: unpacked / "fuseline" / name for name in ours}
        assert {name for name, path in packed.items() if path.is_symlink() or path.read_bytes() != ours[name]} == set()


def test_a_wheel_made_from_the_sdist_is_that_of_the_checkout(distributions: Distributions, tmp_path: Path) -> None:
    uv("build", "--quiet", "--wheel", "--out-dir", tmp_path, distributions.sdist)
    (wheel,) = tmp_path.glob("*.whl")
    assert _contents(wheel) == _contents(distributions.wheel)


def test_in_a_folder_with_modules_of_the_same_names_it_serves_and_classifies(users_folder: UsersFolder) -> None:
    users_folder.check_serving()


def test_in_a_folder_with_modules_of_the_same_names_every_module_is_imported(users_folder: UsersFolder) -> None:
    code = (
        "import importlib, pkgutil, sys, fuseline\n"
        "for module in pkgutil.walk_packages(fuseline.__path__, 'fuseline.'):\n"
        "    if not module.name.endswith('.__main__'):\n"
        "        importlib.import_module(module.name)\n"
        f"assert not set({OWN_NAMES}) & set(sys.modules)\n"
        "print(sum(name.startswith('fuseline.') for name in sys.modules))\n"
    )
    assert int(users_folder.run("-c", code)) > 300


def test_in_a_folder_with_modules_of_the_same_names_every_command_starts(users_folder: UsersFolder) -> None:
    for module in ("fuseline", "fuseline.export", "fuseline.serve", "fuseline.benchmarks"):
        assert "Usage:" in users_folder.run("-m", module, "--help")


@pytest.mark.parametrize("module", ["fuseline", "export", "serve", "benchmarks"])
def test_in_a_checkout_the_folders_are_commands(module: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        f"ours = {OWN_NAMES}\n"
        "assert not [name for name in sys.modules if name.startswith(tuple(f'{own}.' for own in ours))]\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_proto_files_are_registered_under_fuseline() -> None:
    from fuseline.protos import classify_pb2, open_inference_pb2

    names = [module.DESCRIPTOR.name for module in (classify_pb2, open_inference_pb2)]
    assert names == ["fuseline/protos/classify.proto", "fuseline/protos/open_inference.proto"]


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
