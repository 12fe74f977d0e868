"""`make gpu-bundle`: all that a GPU machine without a package index lacks, in parts small enough to be carried.

    build/gpu-bundle/part-1       everything small, Fuseline's wheel, the GPU tests
    build/gpu-bundle/part-2 …     TensorRT for RTX, OpenVINO
    build/gpu-bundle/cuda-part-1 …  ONNX Runtime with CUDA

Every part has install.sh and run.sh. docs/gpu.md says how they are used.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from deploy.gpu_bundle.bundle import write_bundle
from deploy.gpu_bundle.lacking import LackingError, Needed, lacking, read_lock
from deploy.gpu_bundle.roots import CORE, PURPOSE, check_python, roots_of
from deploy.gpu_bundle.target import GLIBC, Target, TargetError, read_target
from deploy.gpu_bundle.wheels import Wheels
from fuseline.benchmarks.gpu.run.job import PICTURES, TRAINED
from fuseline.benchmarks.harness.machine import git_revision

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "checkout.zip"
_LOCKS = ("requirements-serve-gpu.lock", "requirements.lock")
"""The second decides where both have a package: it is what the tests run with."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    """Build the bundle; exit with 2 and one line where that can't be."""
    parser = argparse.ArgumentParser(prog="python -m deploy.gpu_bundle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", type=Path, required=True, metavar="FILE", help="`pip list --format=freeze` of it")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="the target's")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-bundle", metavar="DIR")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR", help=argparse.SUPPRESS
    )
    asked = parser.parse_args()
    try:
        for line in build(read_target(asked.target, asked.python), asked.target.name, asked.out, asked.data):
            print(line)
    except (TargetError, LackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def build(target: Target, target_name: str, out: Path, data: Path) -> Iterator[str]:
    """Write the parts to `out`, in the place of older ones, and yield what to tell of them.

    Raises:
        TargetError: Fuseline doesn't run on the target's Python.
        LackingError: see `lacking`, and `Wheels.of`.
    """
    check_python(ROOT / "pyproject.toml", target.python)
    locked = {name: pin for lock in _LOCKS for name, pin in read_lock(ROOT / lock, target).items()}
    wheels = Wheels(out.with_name(f"gpu-wheels-{target.python}"), target)
    needed = lacking(roots_of(ROOT / "pyproject.toml"), target, locked, wheels.requirements_of)
    facts = {
        "revision": git_revision(),
        "target": target_name,
        "python": target.python,
        "glibc": GLIBC,
        "carried": {group: [str(pin) for pin in pins] for group, pins in needed.pins.items()},
        "assumed": [[assumed.requirement, assumed.needed_by] for assumed in needed.assumed],
    }
    with tempfile.TemporaryDirectory(prefix="fuseline-bundle-") as own:
        manifest = write_bundle(_files(needed, wheels, Path(own), data), out, facts)
    yield f"{out} for {target_name}, Python {target.python}, of {manifest['revision'] or 'no revision'}"
    for part in sorted(path for path in out.iterdir() if path.is_dir()):
        megabytes = sum(path.stat().st_size for path in part.iterdir()) / 1e6
        groups = {
            file["group"]: None for file in manifest["files"] for chunk in file["chunks"] if chunk[0] == part.name
        }
        yield f"  {part.name:<12} {megabytes:5.1f} MB  {', '.join(PURPOSE[group] for group in groups)}"


def _files(needed: Needed, wheels: Wheels, own: Path, data: Path) -> dict[str, list[Path]]:
    """Group to its files."""
    files = {
        group: sorted(wheels.of(pins).values(), key=lambda path: path.stat().st_size)
        for group, pins in needed.pins.items()
    }
    files[CORE][:0] = [_own_wheel(own), _checkout(own / CHECKOUT, data)]
    return files


def _own_wheel(folder: Path) -> Path:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    command = [uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LackingError(f"Fuseline's own wheel can't be built: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _checkout(path: Path, data: Path) -> Path:
    """The tests and what they are configured by; beside them a trained network with its pictures, where those are."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "tests"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    )
    names = ["pyproject.toml", *sorted(name for name in listed.stdout.split("\0") if (ROOT / name).is_file() and name)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            _add(archive, ROOT / name, name)
        if (trained := data / TRAINED).is_file():
            _add(archive, trained, f"data/{TRAINED}")
            for picture in sorted((data / PICTURES).glob("*/*.jpg")):
                _add(archive, picture, f"data/{picture.relative_to(data)}")
    return path


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    # Without times, equal contents give equal sums.
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
