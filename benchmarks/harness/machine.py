"""What a figure was measured on: the machine and the versions, without anything that names a host or a folder."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fuseline.serve.backends.registry import CUDA_BINDINGS, runtimes

_DISTRIBUTIONS = (
    "fuseline",
    "torch",
    "torchvision",
    *(name for runtime in runtimes() if runtime is not CUDA_BINDINGS for name in runtime.distributions),
    "grpcio",
    "protobuf",
    "uvloop",
    "numpy",
)
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")


def machine_facts() -> dict[str, Any]:
    """CPU, cores, memory, GPU, operating system, versions and git revision, ready for JSON. Unknown facts are None."""
    model, features = _cpu()
    return {
        "cpu": model,
        "cpu_features": features,
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "git_revision": git_revision(),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(facts: dict[str, Any]) -> str:
    """One line for people: `Intel(R) Xeon(R) Processor, 2 cores, 23 GiB; Python 3.11.9; onnxruntime 1.31.1, …`."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    hardware = [str(facts["cpu"] or "unknown CPU"), f"{facts['usable_cores']} cores"]
    hardware += [f"{facts['memory_gib']} GiB"] if facts["memory_gib"] else []
    hardware += [facts["gpu"]] if facts["gpu"] else []
    return f"{', '.join(hardware)}; Python {facts['python']}; {versions}; git {facts['git_revision'] or 'unknown'}"


def _cpu() -> tuple[str | None, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or None, []
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), [name for name in _FEATURES if name in flags]


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return None


def _gpu() -> str | None:
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    return _output_of("nvidia-smi", *query) or None


def git_revision() -> str | None:
    """The commit, with `+changes` after it if tracked or new files differ from it."""
    folder = str(Path(__file__).parent)
    revision = _output_of("git", "-C", folder, "rev-parse", "--short=12", "HEAD")
    if not revision:
        return None
    # Results that a run wrote itself are no change of what it measured.
    changed = _output_of("git", "-C", folder, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return f"{revision}+changes" if changed else revision


def _versions() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _output_of(command: str, *arguments: str) -> str | None:
    """What the command printed; None if it isn't here or fails."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
