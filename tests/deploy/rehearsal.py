"""The GPU bundle on a machine like the one it is for, without a GPU or a network: `make gpu-rehearsal` runs this.

The machine is a fresh environment of the target's Python that holds what the target's list names and nothing else. The
parts are installed in turn, run.sh runs for three minutes on the CPU, and what it leaves is read back.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.gpu_bundle.parts import MAX_PART_BYTES
from deploy.gpu_bundle.target import read_target
from fuseline.benchmarks.gpu.run.record import read_record
from tests.measured import Facts, kept_facts
from tests.pythons import find_python, uv

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "gpu-rehearsal"
TARGET = ROOT / "deploy" / "gpu-targets" / "h100-cuda13-py312.txt"
PYTHON = "3.12"
MAX_FILES, MAX_FILE_BYTES = 8, 16 * 10**6
# A network of its own, in which only loopback is up: ioctl SIOCSIFFLAGS with IFF_UP and IFF_RUNNING (man 7 netdevice).
_ALONE = (
    "import fcntl, os, socket, struct, sys\n"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x41))\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


@pytest.fixture(scope="module")
def facts() -> Iterator[Facts]:
    """What was measured: printed at the end and kept as build/gpu-rehearsal/measured.json."""
    yield from kept_facts(WORK / "measured.json")


@pytest.fixture(scope="module")
def bundle(facts: Facts) -> Path:
    """The bundle of this checkout."""
    WORK.mkdir(parents=True, exist_ok=True)
    out = WORK / "bundle"
    started = time.monotonic()
    command = [sys.executable, "-m", "deploy.gpu_bundle", "--target", TARGET, "--python", PYTHON, "--out", out]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    facts["make gpu-bundle, s"] = round(time.monotonic() - started)
    return out


@pytest.fixture(scope="module")
def target_python() -> Path:
    """Python of an environment that holds the packages of the list, and no others."""
    wanted = read_target(TARGET, PYTHON).packages
    digest = hashlib.sha256(TARGET.read_bytes()).hexdigest()[:12]
    folder = WORK / f"machine-{digest}"
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([_interpreter(), "-m", "venv", folder], check=True, timeout=120)
    # A build for one CUDA has its name behind the version, which the index doesn't know.
    lines = [name if version is None else f"{name}=={version.public}" for name, version in wanted.items()]
    asked = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", f"--python-version={PYTHON}"]
    asked += ["--python-platform=x86_64-manylinux_2_35", "-"]
    resolved = uv(*asked, input="\n".join(lines)).splitlines()
    pins = [line for line in resolved if canonicalize_name(Requirement(line).name) in wanted]
    uv("pip", "install", "--quiet", "--no-deps", f"--python={python}", *pins)
    listed = uv("pip", "list", "--format=freeze", f"--python={python}").splitlines()
    there = {canonicalize_name(line.partition("==")[0]) for line in listed}
    assert there == set(wanted)
    (folder / "complete").touch()
    return python


def _interpreter() -> Path:
    """A Python of the target's version."""
    return find_python(PYTHON) or pytest.fail(f"there is no Python {PYTHON} here, which the bundle is for")


@pytest.fixture(scope="module")
def home(target_python: Path) -> Path:
    """The machine's home folder, new."""
    folder = WORK / "home"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


class Machine:
    """Commands on the machine: without this one's environment and without a network."""

    def __init__(self, python: Path, home: Path) -> None:
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHON": str(python), "LANG": "C.UTF-8"}
        self.installed = home / ".cache" / "fuseline-gpu"

    def __call__(self, *command: object, timeout_s: float = 300, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        alone = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", sys.executable, "-c", _ALONE]
        done = subprocess.run(
            [*alone, *map(str, command)],
            env=self._environment | environment,
            cwd=self._environment["HOME"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def python(self, code: str) -> tuple[int, str, str]:
        """Run `code` by the machine's Python with all that is installed."""
        return self("sh", "-c", f'. {self.installed}/activate && exec "$FUSELINE_PYTHON" -c "$1"', "sh", code)


@pytest.fixture(scope="module")
def machine(target_python: Path, home: Path) -> Machine:
    return Machine(target_python, home)


def parts_of(bundle: Path, prefix: str) -> list[Path]:
    return sorted(path for path in bundle.iterdir() if re.fullmatch(rf"{prefix}-\d+", path.name))


def refused(outcome: tuple[int, str, str]) -> str:
    """The one line that a refusal is."""
    code, out, err = outcome
    assert (code, out) == (2, ""), out + err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_no_part_is_larger_than_a_transfer_may_be(bundle: Path, facts: Facts) -> None:
    for part in (*parts_of(bundle, "part"), *parts_of(bundle, "cuda-part")):
        size = sum(path.stat().st_size for path in part.iterdir())
        facts[f"{part.name}, MB"] = round(size / 1e6, 1)
        assert size <= MAX_PART_BYTES
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True, timeout=120)


def test_the_machine_reaches_no_network_and_lacks_what_is_carried(machine: Machine, target_python: Path) -> None:
    download = ("-m", "pip", "download", "--no-deps", "--retries=0", "--timeout=3", "six")
    code, _, err = machine(target_python, *download)
    assert code != 0
    assert "No matching distribution" in err
    assert machine(target_python, "-c", "import pydantic")[0] == 1


def test_before_anything_is_installed_run_sh_says_what_comes_first(machine: Machine, bundle: Path) -> None:
    assert "install.sh of part-1 comes first" in refused(machine("sh", bundle / "part-1" / "run.sh", "--out", "out"))


def test_parts_that_are_not_sound_are_refused(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    cut = shutil.copytree(bundle / "part-2", tmp_path / "cut" / "part-2")
    piece = max(cut.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(piece, 1000)
    assert "part-2 is not whole" in refused(machine("sh", cut / "install.sh"))
    piece.unlink()
    assert f"{piece.name} is missing" in refused(machine("sh", cut / "install.sh"))
    assert "the bundle is for 3.12" in refused(machine("sh", bundle / "part-1" / "install.sh", PYTHON=sys.executable))
    assert not machine.installed.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_too_small_is_refused(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    small = f'mount -t tmpfs -o size=64m tmpfs "{tmp_path}" && exec sh "{bundle}/part-1/install.sh"'
    said = refused(machine("unshare", "--mount", "sh", "-c", small, FUSELINE_GPU_HOME=str(tmp_path / "home")))
    assert re.search(r"part-1 takes \d+ MB with what is installed of it, .* has \d+ MB free", said)


def test_the_parts_are_installed_in_turn(machine: Machine, bundle: Path, facts: Facts) -> None:
    for part in parts_of(bundle, "part"):
        started = time.monotonic()
        code, out, err = machine("sh", part / "install.sh")
        facts[f"install.sh of {part.name}, s"] = round(time.monotonic() - started, 1)
        assert code == 0, err
        assert f"{part.name} is sound" in out
    assert "still missing for ONNX Runtime on the GPU: cuda-part-1" in out
    assert out.count("still missing") == 1
    facts["installed without CUDA's part, MB"] = megabytes(machine.installed)
    code, out, err = machine("sh", "-c", f". {machine.installed}/activate && fuseline doctor")
    assert code == 0, err
    assert "OpenVINO is chosen" in out


def megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def test_without_a_driver_the_run_is_refused(machine: Machine, tmp_path: Path) -> None:
    said = refused(machine("sh", machine.installed / "run.sh", "--out", tmp_path / "out"))
    assert "no NVIDIA driver is installed on this machine; --device cpu rehearses" in said


def test_every_step_runs_or_says_why_not(machine: Machine, bundle: Path, tmp_path: Path, facts: Facts) -> None:
    out = tmp_path / "out"
    flags = ("--device", "cpu", "--models", "resnet8", "--batch", "32,8,1", "--callers", "16,4", "--workers", "1,2,4")
    started = time.monotonic()
    code, table, err = machine(
        "sh", machine.installed / "run.sh", "--minutes", "3", *flags, "--out", out, timeout_s=240
    )
    seconds = time.monotonic() - started
    facts["run.sh --minutes 3 on the CPU, s"] = round(seconds)
    assert code == 0, table + err
    assert seconds < 180
    record = read_record(out / "gpu-run.json")
    assert record.finished
    assert record.bundle is not None
    assert record.bundle["revision"] == json.loads((bundle / "part-1" / "bundle.json").read_text())["revision"]
    for step in record.steps:
        facts[f"step {step.name}"] = f"{step.status}, {len(step.rows)} rows, {step.seconds} of {step.limit_s} s"
        assert step.status in ("done", "not here", "out of time")
        assert step.rows or step.reason
        for row in step.rows:
            assert row.figures or row.reason, row
    by_name = {step.name: step for step in record.steps}
    assert list(by_name) == ["machine", "probe", "package", "engines", "serving", "tests", "cpu"]
    # Real figures, not only reasons.
    rows = {row.what: row for step in record.steps for row in step.rows if row.status == "measured"}
    assert rows["import torch"].figures["version"].startswith("2.11.0")
    assert rows["capability SM89"].figures["built"]
    assert rows["resnet8 on OpenVINO FP32"].figures["same class"] == 1
    assert rows["resnet8, batch 32: ONNX Runtime FP32"].figures["images/s"] > 0
    assert rows["--workers 1: Classify, 1 image, 16 callers"].figures["of bare"] > 0
    assert [what for what in rows if what.startswith("OpenVINO FP32, batch 8: 1 x ")]
    # What comes back from a machine.
    files = list(out.iterdir())
    assert len(files) <= MAX_FILES
    assert all(path.stat().st_size <= MAX_FILE_BYTES for path in files)
    text = (out / "gpu-run.json").read_text()
    assert not [folder for folder in (str(ROOT), str(WORK), str(tmp_path), str(Path.home())) if folder in text]
    code, page, _ = machine.python(
        f"import sys; sys.argv[1:] = ['table', '{out / 'gpu-run.json'}']\n"
        "import runpy; runpy.run_module('fuseline.benchmarks.gpu', run_name='__main__', alter_sys=True)"
    )
    assert (code, page) == (0, (out / "gpu-run.md").read_text())
    shutil.copytree(out, WORK / "out", dirs_exist_ok=True)


def test_onnx_runtime_with_cuda_takes_the_place_of_the_one_for_cpus(
    machine: Machine, bundle: Path, facts: Facts
) -> None:
    for part in parts_of(bundle, "cuda-part"):
        started = time.monotonic()
        code, out, err = machine("sh", part / "install.sh")
        facts[f"install.sh of {part.name}, s"] = round(time.monotonic() - started, 1)
        assert code == 0, err
    assert "still missing" not in out
    facts["installed with CUDA's part, MB"] = megabytes(machine.installed)
    # Its provider finds all of CUDA and cuDNN in the machine's own packages; only the driver is not here.
    code, out, err = machine.python(
        "import ctypes, pathlib, onnxruntime as ort\n"
        "ort.preload_dlls()\n"
        "capi = pathlib.Path(ort.__file__).parent / 'capi'\n"
        "ctypes.CDLL(str(capi / 'libonnxruntime_providers_shared.so'), ctypes.RTLD_GLOBAL)\n"
        "try:\n    ctypes.CDLL(str(capi / 'libonnxruntime_providers_cuda.so'))\n"
        "except OSError as error:\n    print(error)\n"
        "print(ort.get_available_providers())"
    )
    assert code == 0, err
    first, last = out.splitlines()
    assert first.startswith("libcuda.so.1: cannot open shared object file")
    assert "CUDAExecutionProvider" in last
    code, out, _ = machine("sh", "-c", f". {machine.installed}/activate && fuseline doctor")
    assert re.search(r"ONNX Runtime +\S+ \(onnxruntime-gpu\)", out)
