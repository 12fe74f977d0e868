"""What is refused before a run begins; drivers and GPUs are fakes."""

from pathlib import Path

import pytest

from fuseline.benchmarks.gpu.run.preflight import MOST_HELD_MIB, check_device, check_disk
from fuseline.serve.backends.gpu.cuda import Gpu
from fuseline.serve.backends.gpu.nvidia_driver import Driver
from fuseline.serve.errors import BackendUnavailableError, InputError

HOPPER = Driver("580.159.04", "13.0", (Gpu("NVIDIA H100 80GB HBM3", "sm90", 80 * 2**30),), None)


def facts(held_mib: float) -> dict[str, object]:
    return {"memory_used_mib": held_mib, "memory_mib": 81559}


def test_no_driver_is_one_line_with_what_can_be_done() -> None:
    with pytest.raises(
        BackendUnavailableError, match="no NVIDIA driver .*; --device cpu rehearses the run without a GPU"
    ):
        check_device("cuda", driver=lambda: None)
    check_device("cpu", driver=lambda: None)


def test_a_driver_without_a_gpu_says_what_the_driver_says() -> None:
    hidden = Driver("580.1", "13.0", (), "it shows no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    with pytest.raises(BackendUnavailableError, match="the NVIDIA driver is here, but it shows no GPU"):
        check_device("cuda", driver=lambda: hidden)


def test_a_gpu_whose_memory_others_hold_is_refused_unless_that_is_asked_for() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"others hold 70000 of 81559 MiB of the memory of NVIDIA H100.*; "
    ):
        check_device("cuda", driver=lambda: HOPPER, facts=lambda: facts(70000))
    check_device("cuda", shared=True, driver=lambda: HOPPER, facts=lambda: facts(70000))
    check_device("cuda", driver=lambda: HOPPER, facts=lambda: facts(MOST_HELD_MIB))
    with pytest.raises(BackendUnavailableError, match="others hold 70000 of unknown MiB"):
        check_device("cuda", driver=lambda: HOPPER, facts=lambda: {"memory_used_mib": 70000})
    # What nvidia-smi doesn't tell can't be held against anyone.
    check_device("cuda", driver=lambda: HOPPER, facts=lambda: None)
    check_device("cuda", driver=lambda: HOPPER, facts=lambda: {"memory_mib": 81559})


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    check_disk((tmp_path,), least_bytes=1)
    with pytest.raises(InputError, match=r"has \d+ MB free, a run may need 1000000000000; .*--out and TMPDIR"):
        check_disk((tmp_path,), least_bytes=10**18)
