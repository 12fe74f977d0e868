"""The GPU as its driver describes it: name, driver, memory, clocks, power. Nothing is changed."""

import os
import shutil
import subprocess
from typing import Any

# nvidia-smi's field -> ours. What a driver doesn't know it answers with N/A or an error for the field alone.
_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "compute_cap": "compute_capability",
    "memory.total": "memory_mib",
    "memory.used": "memory_used_mib",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "sm_clock_max_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.mem": "memory_clock_max_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "compute_mode": "compute_mode",
    "mig.mode.current": "mig_mode",
}
_TEXTS = ("name", "driver", "compute_capability", "compute_mode", "mig_mode")
_TIMEOUT_S = 20.0


def gpu_facts() -> dict[str, Any] | None:
    """What nvidia-smi says now of the first GPU that CUDA may use, ready for JSON; what it can't read is left out.

    None where there is no nvidia-smi or no GPU.
    """
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    query = [path, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits", f"--id={_first_visible()}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.strip().splitlines()
    return facts_from_line(lines[0]) if done.returncode == 0 and lines else None


def facts_from_line(line: str) -> dict[str, Any]:
    """Our fields from one line of nvidia-smi's CSV."""
    values = [value.strip() for value in line.split(",")]
    readable = {
        field: value
        for field, value in zip(_FIELDS.values(), values, strict=False)
        if value and not value.startswith("[") and value not in ("N/A", "Not Supported")
    }
    return {field: _number(value) if field not in _TEXTS else value for field, value in readable.items()}


def _first_visible() -> str:
    """An index or a UUID; nvidia-smi takes both, and its order is CUDA's where all GPUs are of one kind."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _number(value: str) -> float | int | str:
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number
