"""Reads the NVIDIA driver's version and GPUs; this needs the driver's library alone, no Python package."""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuseline.serve.backends.gpu.cuda import Gpu

LIBRARY = "libcuda.so.1"
_VERSION_FILE = Path("/proc/driver/nvidia/version")
_NAME_BYTES = 256
# CUdevice_attribute (CUDA driver API).
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver of this machine."""

    version: str | None
    """Version, such as `580.95.05`; None where the kernel module doesn't give it."""
    cuda: str
    """Newest version of CUDA that the driver serves."""
    gpus: tuple[Gpu, ...]
    """GPUs that CUDA_VISIBLE_DEVICES leaves visible; the first one serves."""
    problem: str | None
    """Reason why the driver shows no GPU; None if it shows one."""


def nvidia_driver(library: Any = None) -> Driver | None:
    """Return the driver of this machine; None if there is none. `library` stands in for the driver's own, `LIBRARY`."""
    if library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError:
            return None
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    try:
        _check(library, "cuInit", 0)
        _check(library, "cuDeviceGetCount", ctypes.byref(number))
        gpus = tuple(_gpu(library, index) for index in range(number.value))
    except OSError as error:
        return Driver(_version(), cuda, (), str(error))
    problem = None if gpus else "it shows no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    return Driver(_version(), cuda, gpus, problem)


def _gpu(library: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    memory_bytes, name = ctypes.c_size_t(0), ctypes.create_string_buffer(_NAME_BYTES)
    _check(library, "cuDeviceGet", ctypes.byref(device), index)
    _check(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    _check(library, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _check(library, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    _check(library, "cuDeviceTotalMem_v2", ctypes.byref(memory_bytes), device)
    return Gpu(name.value.decode(), f"sm{major.value}{minor.value}", memory_bytes.value)


def _check(library: Any, function: str, *arguments: Any) -> None:
    if status := getattr(library, function)(*arguments):
        words = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(words))
        raise OSError(f"{function} failed: {(words.value or b'unknown error').decode()} (CUresult {status})")


def _version() -> str | None:
    try:
        text = _VERSION_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else None
