"""The CPU of this machine, and its features that matter for networks."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_INFO_FILE = Path("/proc/cpuinfo")
INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp")
"""Instruction sets that multiply 8-bit integers: VNNI and AMX of x86, dot product and matrices of Arm."""
BF16_FEATURES = ("avx512_bf16", "amx_bf16", "amx_fp16")
"""Instruction sets of x86 that multiply numbers of 16 bits."""
_FEATURES = ("avx2", "fma", "avx512f", "avx512_fp16", *BF16_FEATURES, "bf16", *INT8_FEATURES)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPU of a machine."""

    model: str
    usable: int
    """Number of logical CPUs that this process may use."""
    features: tuple[str, ...] | None
    """Features that matter to the runtimes, as Linux names them; None where they can't be read."""

    @property
    def int8(self) -> tuple[str, ...]:
        """Features that make INT8 graphs faster than FP32 ones."""
        return tuple(name for name in self.features or () if name in INT8_FEATURES)

    @property
    def bf16(self) -> tuple[str, ...]:
        """Features that make BF16 faster than FP32."""
        return tuple(name for name in self.features or () if name in BF16_FEATURES)


def usable_cpus() -> int:
    """Return the number of logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_cpu(info_file: Path = _INFO_FILE) -> Cpu:
    """Return what the operating system says about the CPU."""
    try:
        lines = info_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Cpu(platform.processor() or platform.machine(), usable_cpus(), None)
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    # x86 calls them flags, Arm Features.
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Cpu(fields.get("model name") or platform.machine(), usable_cpus(), tuple(f for f in _FEATURES if f in flags))
