"""The driver's library is played by one in Python, that ctypes' pointers are handed to as to the real one."""

import pytest

from fuseline.serve.backends.gpu import nvidia_driver as module
from fuseline.serve.backends.gpu.cuda import Gpu
from fuseline.serve.backends.gpu.nvidia_driver import Driver, nvidia_driver


class FakeLibcuda:
    """Two GPUs, unless `cuInit` fails with `init`."""

    NAMES = (b"NVIDIA RTX 4090", b"NVIDIA H100")
    CAPABILITIES = ((8, 9), (9, 0))

    def __init__(self, *, init=0, count=2):
        self.init = init
        self.count = count

    def cuDriverGetVersion(self, version):
        version._obj.value = 13020
        return 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name, size, device):
        assert size == len(name)
        name.value = self.NAMES[device.value - 10]
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.CAPABILITIES[device.value - 10][attribute - 75]
        return 0

    def cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = (24 + device.value - 10) * 2**30
        return 0

    def cuGetErrorString(self, status, words):
        words._obj.value = f"words for {status}".encode()
        return 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Mar  5\nGCC 12.2",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("something else", None),
        (None, None),
    ],
)
def test_a_driver_tells_its_version_and_gpus(text, version, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_VERSION_FILE", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(text)
    gpus = (Gpu("NVIDIA RTX 4090", "sm89", 24 * 2**30), Gpu("NVIDIA H100", "sm90", 25 * 2**30))
    assert nvidia_driver(FakeLibcuda()) == Driver(version, "13.2", gpus, None)


def test_a_driver_that_fails_says_how():
    driver = nvidia_driver(FakeLibcuda(init=999))
    assert (driver.cuda, driver.gpus, driver.problem) == ("13.2", (), "cuInit failed: words for 999 (CUresult 999)")


def test_a_driver_whose_gpus_are_hidden_says_where_to_look():
    assert "CUDA_VISIBLE_DEVICES" in nvidia_driver(FakeLibcuda(count=0)).problem


def test_no_driver_is_no_error(monkeypatch):
    monkeypatch.setattr(module, "LIBRARY", "libnothing.so.1")
    assert nvidia_driver() is None
