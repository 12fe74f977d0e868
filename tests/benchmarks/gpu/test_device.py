import subprocess
from types import SimpleNamespace

import pytest

from fuseline.benchmarks.gpu import device
from fuseline.benchmarks.gpu.device import facts_from_line, gpu_facts

LINE = "NVIDIA H100 80GB HBM3, 580.95.05, 9.0, 81559, 1, 1980, 1980, 2619, 2619, 71.32, 700.00, 31, Default, Disabled"


def test_a_line_of_nvidia_smi_becomes_facts() -> None:
    facts = facts_from_line(LINE)
    assert facts["name"] == "NVIDIA H100 80GB HBM3"
    assert facts["driver"] == "580.95.05"
    assert facts["compute_capability"] == "9.0"
    assert (facts["memory_mib"], facts["sm_clock_mhz"], facts["power_w"]) == (81559, 1980, 71.32)


def test_what_a_driver_does_not_tell_is_left_out() -> None:
    facts = facts_from_line("Tesla T4, 580.95.05, 7.5, 15360, [N/A], 1590, [Not Supported], 5000, 5001, N/A, 70.00, 40")
    assert facts["sm_clock_mhz"] == 1590
    assert not {"memory_used_mib", "sm_clock_max_mhz", "power_w", "mig_mode"} & facts.keys()


@pytest.mark.parametrize("visible", ["1", "GPU-2f3a,GPU-77aa", ""])
def test_the_first_gpu_that_cuda_may_use_is_asked_for(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout=f"{LINE}\n")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(device.shutil, "which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_facts() is not None
    assert asked[0][-1] == f"--id={visible.split(',', maxsplit=1)[0] or '0'}"


def test_without_nvidia_smi_there_are_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    assert gpu_facts() is None
