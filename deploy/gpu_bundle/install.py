"""Install one part of a GPU bundle on a machine without a package index. Python's standard library alone is used.

What arrives is kept under $FUSELINE_GPU_HOME (by default ~/.cache/fuseline-gpu), which outlives a call:

    arrived/    pieces of wheels that wait for the rest
    site/GROUP  a folder of installed packages for each group of the bundle
    checkout/   the tests, and the trained network with its pictures
    activate    `. activate` in a shell lets Python and `fuseline` find all of it

It can be called for each part in any order, and again. It ends with 2 and one line where something is wrong.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SITE_ORDER = ("cuda", "core", "tensorrt-rtx", "openvino")
"""ONNX Runtime with CUDA goes before the one for CPUs, whose name it has."""
SUMS = "SHA256SUMS"
TRAVELS = ("bundle.json", "install.py", "install.sh", "run.sh")
"""In every part."""
_COPY_BYTES = 2**20
_SPARE_BYTES = 200 * 2**20


class InstallError(Exception):
    """What is wrong and what to do, in one line."""


def main(part: Path, home: Path) -> list[str]:
    """Install `part`, and whatever is complete with it; return what to tell.

    Raises:
        InstallError: the part is damaged or of another bundle, or this machine is not what the bundle is for.
    """
    manifest = _manifest(part)
    _check_machine(manifest)
    _check_part(part, manifest)
    _check_same_bundle(part, home)
    _check_disk(part, manifest, home)
    home.mkdir(parents=True, exist_ok=True)
    arrived = home / "arrived"
    arrived.mkdir(exist_ok=True)
    for path in _wanted_in(part, manifest, home):
        _copy(path, arrived / path.name)
    for name in (*TRAVELS, SUMS):
        _copy(part / name, home / name)
    told = [f"{part.name} is sound: {home}"]
    for group in manifest["purpose"]:
        told += _install_group(group, manifest, home)
    _write_activate(home)
    told += [f"warning: {line}" for line in _broken_assumptions(manifest, home)]
    told += _missing(manifest, home)
    return told


def _manifest(part: Path) -> dict:
    try:
        manifest = json.loads((part / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InstallError(f"{part} is no part of a bundle, or it is cut short: bundle.json: {error}") from error
    if manifest["format"] != 1:
        raise InstallError(
            f"{part} has format {manifest['format']}, this install.py reads format 1; use the part's own"
        )
    return manifest


def _check_machine(manifest: dict) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != manifest["python"]:
        raise InstallError(
            f"this is Python {python}, the bundle is for {manifest['python']}; name that one as PYTHON=python"
            f"{manifest['python']}, or make the bundle with GPU_PYTHON={python}"
        )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise InstallError(f"this is {sys.platform} on {platform.machine()}, the bundle is for Linux on x86_64")
    library, version = platform.libc_ver()
    needed = tuple(manifest["glibc"])
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < needed:
        raise InstallError(f"this is {library or 'no glibc'} {version}, the wheels need glibc {needed[0]}.{needed[1]}")


def _check_same_bundle(part: Path, home: Path) -> None:
    here = home / SUMS
    if here.is_file() and here.read_bytes() != (part / SUMS).read_bytes():
        raise InstallError(
            f"{part.name} is of another bundle than what is in {home}; bring parts of one, or remove that folder first"
        )


def _check_part(part: Path, manifest: dict) -> None:
    sizes = {stored: size for file in manifest["files"] for name, stored, size in file["chunks"] if name == part.name}
    if not sizes:
        raise InstallError(f"{part} is not called as in the bundle, part-1 or cuda-part-1 say; give it its name back")
    names = [*sizes, *TRAVELS]
    if missing := [name for name in (SUMS, *names) if not (part / name).is_file()]:
        raise InstallError(f"{part.name} is not whole: {', '.join(missing)} is missing; carry it again")
    lines = (part / SUMS).read_text(encoding="ascii", errors="replace").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for stored in names:
        path, expected = part / stored, sums.get(f"{part.name}/{stored}")
        if expected is None:
            raise InstallError(f"{part.name} is damaged: {SUMS} has no line for {stored}; carry it again")
        size = path.stat().st_size
        if size != sizes.get(stored, size):
            raise InstallError(
                f"{part.name} is not whole: {stored} has {size} bytes of {sizes[stored]}; carry it again"
            )
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise InstallError(f"{part.name} is damaged: {stored} has another sha256 than expected; carry it again")


def _check_disk(part: Path, manifest: dict, home: Path) -> None:
    """Room for this part, and for what is installed with it. What is installed already takes none."""
    needed = sum(path.stat().st_size for path in _wanted_in(part, manifest, home)) + _SPARE_BYTES
    groups = {file["group"] for file in manifest["files"] for name, _, _ in file["chunks"] if name == part.name}
    for file in manifest["files"]:
        if file["group"] in groups and not _installed(file["group"], home):
            # Joined, unpacked, and unpacked again by pip before it is moved.
            needed += file["size"] + 2 * file["unpacked"]
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InstallError(
            f"{part.name} takes {needed / 1e6:.0f} MB with what is installed of it, {home} has {free / 1e6:.0f} MB "
            "free; FUSELINE_GPU_HOME=DIR puts it elsewhere"
        )


def _wanted_in(part: Path, manifest: dict, home: Path) -> list[Path]:
    """The pieces in `part` of what is not installed yet."""
    files = [file for file in manifest["files"] if not _installed(file["group"], home)]
    return [part / stored for file in files for name, stored, _ in file["chunks"] if name == part.name]


def _copy(source: Path, destination: Path) -> None:
    """All of it or nothing; by way of a name that nothing else looks for."""
    if source.resolve() == destination.resolve():
        return
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.copy(source, partial)
    partial.replace(destination)


def _install_group(group: str, manifest: dict, home: Path) -> list[str]:
    files = [file for file in manifest["files"] if file["group"] == group]
    pieces = [home / "arrived" / stored for file in files for _, stored, _ in file["chunks"]]
    if _installed(group, home) or not files or not all(path.is_file() for path in pieces):
        return []
    joined = home / "joined"
    shutil.rmtree(joined, ignore_errors=True)
    joined.mkdir()
    for file in files:
        _join([home / "arrived" / stored for _, stored, _ in file["chunks"]], joined / file["name"])
    wheels = sorted(str(path) for path in joined.glob("*.whl"))
    site = _site(group, home)
    partial = site.with_name(f".{site.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _pip(wheels, partial)
    for archive in joined.glob("*.zip"):
        shutil.rmtree(home / archive.stem, ignore_errors=True)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(home / archive.stem)
    shutil.rmtree(site, ignore_errors=True)
    partial.rename(site)
    shutil.rmtree(joined)
    for path in pieces:
        path.unlink()
    return [f"installed {len(wheels)} packages for {manifest['purpose'][group]}"]


def _join(pieces: list[Path], destination: Path) -> None:
    with destination.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, whole, _COPY_BYTES)


def _pip(wheels: list[str], site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site), *wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()
        raise InstallError(f"{sys.executable} -m pip failed: {said[-1]}")


def _site(group: str, home: Path) -> Path:
    return home / "site" / group


def _installed(group: str, home: Path) -> bool:
    return _site(group, home).is_dir()


def _write_activate(home: Path) -> None:
    sites = [str(_site(group, home)) for group in SITE_ORDER if _installed(group, home)]
    # Where NVIDIA's wheels have their libraries. ONNX Runtime looks for them only beside itself.
    roots = [*sites, *(path for path in sys.path if path)]
    libraries = [str(folder) for root in roots for folder in sorted(Path(root).glob("nvidia/*/lib"))]
    lines = ["# Written by install.sh."]
    for name, folders in (
        ("PYTHONPATH", sites),
        ("LD_LIBRARY_PATH", libraries),
        ("PATH", [f"{site}/bin" for site in sites]),
    ):
        if folders:
            words = shlex.quote(":".join(dict.fromkeys(folders)))
            lines.append(f'export {name}={words}"${{{name}:+:${name}}}"')
    lines.append(f"export FUSELINE_PYTHON={shlex.quote(sys.executable)}")
    lines.append(f"export FUSELINE_BUNDLE={shlex.quote(str(home))}")
    partial = home / ".activate.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(home / "activate")


def _broken_assumptions(manifest: dict, home: Path) -> list[str]:
    """What the bundle's list says that this machine has, and it hasn't, or in a version that is too old."""
    try:
        from pip._vendor.packaging.requirements import Requirement
        from pip._vendor.packaging.utils import canonicalize_name
    except ImportError as error:
        return [f"what this machine has can't be held against {manifest['target']}: {error}"]
    folders = [str(_site(group, home)) for group in SITE_ORDER if _installed(group, home)]
    there = {}
    for found in importlib.metadata.distributions(path=[*folders, *sys.path]):
        there.setdefault(canonicalize_name(found.metadata["Name"] or ""), found.version)
    broken = []
    for line, needed_by in manifest["assumed"]:
        requirement = Requirement(line)
        version = there.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            broken.append(
                f"{needed_by} needs {line}, here is {version or 'none'}; make the bundle with what "
                "`pip list --format=freeze` prints here"
            )
    return broken


def _missing(manifest: dict, home: Path) -> list[str]:
    """What has not arrived, by what it is for."""
    told = []
    for group, purpose in manifest["purpose"].items():
        chunks = [chunk for file in manifest["files"] if file["group"] == group for chunk in file["chunks"]]
        if _installed(group, home) or not chunks:
            continue
        parts = dict.fromkeys(part for part, stored, _ in chunks if not (home / "arrived" / stored).is_file())
        told.append(f"still missing for {purpose}: {', '.join(parts)}")
    if _installed("core", home):
        run, activate = (shlex.quote(str(home / name)) for name in ("run.sh", "activate"))
        told.append(f"ready: sh {run} --minutes 10 --out DIR; or `. {activate}` and `fuseline --help`")
    return told


def home_folder() -> Path:
    """Where the bundle is kept; run.sh looks there too."""
    if named := os.environ.get("FUSELINE_GPU_HOME"):
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "/tmp") / ".cache"  # noqa: S108
    return Path(cache).absolute() / "fuseline-gpu"


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        for line in main(Path(__file__).absolute().parent, home_folder()):
            print(line, flush=True)
    except InstallError as error:
        _end(f"{error}")
    except OSError as error:
        _end(f"{error}; look at the disk and the rights of {home_folder()}")
