"""install.py on parts of a small bundle, in a process of its own as on the machine that it is for."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.gpu_bundle.bundle import write_bundle
from deploy.gpu_bundle.parts import CONTENT_BYTES, MAX_PART_BYTES

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIMIT = 4000
PIECE = "large-1.0-py3-none-any.whl.1-of-2"
Installed = tuple[int, str, str]


def wheel(folder: Path, name: str, code: str, padding: int = 0) -> Path:
    """A wheel of one module; `padding` bytes that can't be compressed."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{name}_data.bin", os.urandom(padding))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def bundle(folder: Path, **facts: object) -> Path:
    """Parts 1 to 3 and a CUDA part; `large` goes over the end of part-2, and `runtime` comes twice."""
    wheels = folder / "wheels"
    for_cuda = wheel(folder / "for-cuda", "runtime", "KIND = 'cuda'").rename(folder / "runtime-2.0-py3-none-any.whl")
    with zipfile.ZipFile(folder / "checkout.zip", "w") as archive:
        archive.writestr("tests/gpu/test_it.py", "")
    files = {
        "core": [wheel(wheels, "core", "NAME = 'core'"), folder / "checkout.zip"],
        "tensorrt-rtx": [wheel(wheels, "large", "NAME = 'large'", 3 * LIMIT // 2)],
        "openvino": [wheel(wheels, "runtime", "KIND = 'cpu'")],
        "cuda": [for_cuda],
    }
    told = {"revision": "abc", "target": "has.txt", "python": PYTHON, "glibc": [2, 17], "assumed": [], **facts}
    write_bundle(files, folder / "bundle", told, limit=LIMIT)
    return folder / "bundle"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return bundle(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home"


@pytest.fixture
def install(home: Path) -> Callable[[Path], Installed]:
    """Run a part's install.sh; return exit code, stdout, stderr."""

    def install(part: Path, **environment: str) -> Installed:
        done = subprocess.run(
            ["sh", part / "install.sh"],
            env=os.environ | {"FUSELINE_GPU_HOME": str(home), "PYTHON": sys.executable} | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return install


def says(home: Path, code: str) -> str:
    """What Python prints after `. activate`."""
    command = f'. "{home}/activate" && "$FUSELINE_PYTHON" -c "{code}"'
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_parts_in_any_order_become_one_installation(parts: Path, home: Path, install) -> None:
    assert sorted(path.name for path in parts.iterdir() if path.is_dir()) == [
        "cuda-part-1",
        "part-1",
        "part-2",
        "part-3",
    ]
    code, out, err = install(parts / "part-3")
    assert (code, err) == (0, "")
    assert "still missing for TensorRT for RTX: part-2" in out
    assert "ready" not in out
    code, out, _ = install(parts / "part-1")
    assert code == 0
    assert "installed 1 packages for export, serve, the benchmarks and the GPU tests" in out
    assert "ready: sh" in out
    assert (home / "checkout/tests/gpu/test_it.py").is_file()
    assert says(home, "import core; print(core.NAME)") == "core"
    code, out, _ = install(parts / "part-2")
    assert "installed 1 packages for TensorRT for RTX" in out
    assert says(home, "import large, runtime; print(large.NAME, runtime.KIND)") == "large cpu"
    assert "still missing for ONNX Runtime on the GPU: cuda-part-1" in out
    code, out, _ = install(parts / "cuda-part-1")
    assert "still missing" not in out
    # It has the name of the one for CPUs, and goes before it.
    assert says(home, "import runtime; print(runtime.KIND)") == "cuda"
    # What was joined or waited is gone.
    assert not list((home / "arrived").iterdir())


def test_a_part_may_be_installed_twice(parts: Path, home: Path, install) -> None:
    assert install(parts / "part-1")[0] == 0
    code, out, err = install(parts / "part-1")
    assert (code, err) == (0, "")
    assert "installed 1" not in out
    assert not list((home / "arrived").iterdir())
    assert says(home, "import core; print(core.NAME)") == "core"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda part: (part / PIECE).unlink(),
            "large.*1-of-2 is missing; carry it again",
        ),
        (
            lambda part: os.truncate(part / PIECE, 100),
            "part-2 is not whole: large.*1-of-2 has 100 bytes of 4000; carry it again",
        ),
        (lambda part: flip(part / PIECE), "part-2 is damaged: large.*another sha256"),
        (lambda part: os.truncate(part / "bundle.json", 50), "part-2 is no part of a bundle, or it is cut short"),
        (lambda part: flip(part / "run.sh"), "part-2 is damaged: run.sh has another sha256"),
        (lambda part: (part / "SHA256SUMS").unlink(), "part-2 is not whole: SHA256SUMS is missing"),
        (lambda part: os.truncate(part / "SHA256SUMS", 300), "part-2 is damaged: SHA256SUMS has no line for large"),
    ],
    ids=["missing", "cut short", "damaged", "manifest cut short", "script damaged", "no sums", "sums cut short"],
)
def test_a_part_that_is_not_sound_is_one_line_and_changes_nothing(
    parts: Path, home: Path, install, harm: Callable[[Path], object], message: str
) -> None:
    install(parts / "part-1")
    before = sorted(home.rglob("*"))
    harm(parts / "part-2")
    code, out, err = install(parts / "part-2")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert re.search(message, err), err
    assert sorted(home.rglob("*")) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_part_of_another_bundle_is_refused(parts: Path, home: Path, install, tmp_path: Path) -> None:
    install(parts / "part-1")
    (tmp_path / "later").mkdir()
    later = bundle(tmp_path / "later", revision="def")
    code, _, err = install(later / "part-2")
    assert code == 2
    assert "error: part-2 is of another bundle than what is in" in err
    assert err.count("\n") == 1


def test_a_part_under_another_name_is_refused(parts: Path, install, tmp_path: Path) -> None:
    renamed = (parts / "part-1").rename(tmp_path / "upload")
    code, _, err = install(renamed)
    assert code == 2
    assert "is not called as in the bundle, part-1 or cuda-part-1 say" in err


def test_another_python_or_glibc_is_refused(tmp_path: Path, install) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    code, _, err = install(bundle(tmp_path / "a", python="3.9") / "part-1")
    assert code == 2
    assert f"this is Python {PYTHON}, the bundle is for 3.9; name that one as PYTHON=python3.9" in err
    code, _, err = install(bundle(tmp_path / "b", glibc=[9, 99]) / "part-1")
    assert code == 2
    assert "the wheels need glibc 9.99" in err


def test_too_little_room_is_said_before_anything_is_written(parts: Path, home: Path, tmp_path: Path) -> None:
    # The function of the travelling script itself, whose disk is played.
    sys.path.insert(0, str(parts / "part-1"))
    try:
        import install as travelling
    finally:
        sys.path.pop(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(travelling.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        with pytest.raises(
            travelling.InstallError, match=r"part-1 takes \d+ MB .* has 1 MB free; FUSELINE_GPU_HOME=DIR"
        ):
            travelling.main(parts / "part-1", home)
    assert not home.exists()


def test_what_the_list_promises_and_the_machine_lacks_is_a_warning(tmp_path: Path, install) -> None:
    assumed = [["pip>=1", "core==1.0"], ["pip>=9999", "core==1.0"], ["unheard-of", "core==1.0"]]
    code, out, _ = install(bundle(tmp_path, assumed=assumed) / "part-1")
    assert code == 0
    warnings = [line for line in out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "core==1.0 needs pip>=9999, here is " in warnings[0]
    assert "core==1.0 needs unheard-of, here is none" in warnings[1]


def test_nvidias_libraries_are_where_the_loader_looks(parts: Path, home: Path, install, tmp_path: Path) -> None:
    libraries = tmp_path / "site" / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    install(parts / "part-1", PYTHONPATH=str(tmp_path / "site"))
    assert says(home, "import os; print(os.environ['LD_LIBRARY_PATH'])").split(":")[0] == str(libraries)


def test_run_sh_before_part_1_says_what_comes_first(parts: Path, home: Path) -> None:
    done = subprocess.run(
        ["sh", parts / "part-2" / "run.sh", "--out", "x"],
        env=os.environ | {"FUSELINE_GPU_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: nothing to run is installed in {home}; install.sh of part-1 comes first\n"


def test_a_part_with_all_that_travels_along_is_no_larger_than_it_may_be() -> None:
    travelling = Path(__file__).parents[2] / "deploy" / "gpu_bundle"
    scripts = sum((travelling / name).stat().st_size for name in ("install.py", "install.sh", "run.sh"))
    assert scripts < MAX_PART_BYTES - CONTENT_BYTES - 400_000


def test_sums_can_be_checked_where_all_parts_are(parts: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=parts, check=True, timeout=60)
    assert json.loads((parts / "part-1" / "bundle.json").read_text())["revision"] == "abc"
