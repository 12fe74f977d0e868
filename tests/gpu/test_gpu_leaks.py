"""Loading and unloading leaves nothing behind, on the GPU or on the host."""

import gc
import os
import time
from pathlib import Path

import pytest

from fuseline.serve.backends.gpu.cuda import Cuda
from tests.gpu.conftest import OpenBackend, Subject

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(0)]

CYCLES = 1000
WARM_UP_CYCLES = 50
"""Before anything is compared: the driver and the libraries keep what their first uses made."""
DEVICE_LIMIT_BYTES = 16 * 2**20
"""Of all cycles together; the driver hands out pages of 2 MiB, so a leak of a page in 100 cycles is over it."""
HOST_LIMIT_BYTES = 64 * 2**20
BUDGET_S = 60 * float(os.environ.get("FUSELINE_LEAK_MINUTES", "4"))
"""For one runtime."""


def free_device_bytes(cuda: Cuda) -> int:
    from cuda.bindings import runtime

    status, free, _ = runtime.cudaMemGetInfo()
    assert status == runtime.cudaError_t.cudaSuccess
    return int(free)


def resident_host_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_a_thousand_loads_and_unloads_leak_nothing(
    name: str, cuda: Cuda, subject: Subject, open_on_gpu: OpenBackend
) -> None:
    started = time.monotonic()

    def cycle() -> None:
        backend = open_on_gpu(name, subject.package, buckets=(1,))
        for compute in backend.open_lanes(2):
            compute(subject.pixels[:1])
        backend.close()

    for _ in range(WARM_UP_CYCLES):
        cycle()
    gc.collect()
    free_before, resident_before = free_device_bytes(cuda), resident_host_bytes()
    done = WARM_UP_CYCLES
    while done < CYCLES and time.monotonic() - started < BUDGET_S:
        cycle()
        done += 1
    gc.collect()
    lost, grown = free_before - free_device_bytes(cuda), resident_host_bytes() - resident_before
    print(f"{name}: {done} cycles, {lost} bytes less on the GPU, {grown} more on the host")
    assert lost <= DEVICE_LIMIT_BYTES, f"{lost} bytes of the GPU's memory are gone after {done} cycles"
    assert grown <= HOST_LIMIT_BYTES, f"the process grew by {grown} bytes in {done} cycles"
    if done < CYCLES:
        pytest.skip(f"no leak in {done} cycles; {CYCLES} take more than the {BUDGET_S:.0f} s allowed here")
