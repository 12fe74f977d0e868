"""Regions of a GPU's memory; the GPU and the process that shares it are fake ones."""

import asyncio
import threading
from unittest import mock

import numpy as np
import pytest

from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import (
    BackendError,
    BackendUnavailableError,
    RegionExistsError,
    RequestError,
    SharedMemoryUnavailableError,
)
from fuseline.serve.shared_memory import cuda_region
from fuseline.serve.shared_memory.cuda_region import may_share_cuda_memory
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registrar import LocalRegistrar
from fuseline.serve.shared_memory.registration import CudaRegistration
from tests.fakes.gpu import Error, FakeCudart
from tests.serve.shared_memory.objects import shared_object

HANDLE = bytes(range(64))
CONTENT = bytes(range(200))


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    """Two GPUs, the second of which has memory that another process shares."""
    cudart = FakeCudart(devices=2)
    cudart.pageable = True
    cudart.share(HANDLE, CONTENT, device=1)
    monkeypatch.setattr(cuda_region, "open_cuda", lambda: Cuda(cudart, cudart))
    return cudart


@pytest.fixture
def registrar() -> LocalRegistrar:
    return LocalRegistrar(SharedMemoryRegions())


def registration(**changes: object) -> CudaRegistration:
    return CudaRegistration(**{"name": "gpu", "raw_handle": HANDLE, "device_id": 1, "byte_size": 100} | changes)  # type: ignore[arg-type]


async def until_freed(cudart: FakeCudart) -> None:
    """The event loop and the thread that opened a region forget it a little later than they return it."""
    async with asyncio.timeout(30):
        while cudart.live:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_it_is_read_and_written_like_system_memory(cudart: FakeCudart, registrar: LocalRegistrar) -> None:
    await registrar.register(registration())
    regions = registrar.regions
    assert regions.status("", "cuda") == [registration()]
    pixels = np.empty((2, 10), np.uint8)
    regions.read("gpu", 5, 20, pixels)
    assert pixels.tobytes() == CONTENT[5:25]
    part = regions.writable("gpu", 96, 4)
    part.write(b"text")
    _, memory = cudart.shared[HANDLE]
    assert bytes(memory) == CONTENT[:96] + b"text" + CONTENT[100:]  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="not within the shared memory region 'gpu', which has 100 bytes"):
        regions.writable("gpu", 98, 4)
    assert cudart.cudaGetDevice()[1] == 0


async def test_everything_is_freed_when_it_is_unregistered_but_not_before_it_is_written(
    cudart: FakeCudart, registrar: LocalRegistrar
) -> None:
    await registrar.register(registration())
    await registrar.register(registration(name="twice"))
    part = registrar.regions.writable("gpu", 0, 4)
    await registrar.unregister("", "system")
    assert len(registrar.regions.status("", "cuda")) == 2
    await registrar.unregister("", "cuda")
    part.write(b"late")
    assert bytes(cudart.shared[HANDLE][1])[:4] == b"late"  # type: ignore[call-overload]
    del part
    await until_freed(cudart)
    assert not cudart.opened


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_handle": b""}, "the raw_handle has 0 bytes; a cudaIpcMemHandle_t has 64"),
        ({"raw_handle": HANDLE + b"x"}, "the raw_handle has 65 bytes"),
        ({"raw_handle": bytes(64)}, r"can't be opened on GPU 1 \(cudaIpcOpenMemHandle failed: words for"),
        ({"device_id": 0}, "can't be opened on GPU 0"),
        ({"device_id": 2}, "there is no GPU 2 here; CUDA shows the server 2"),
        ({"device_id": -1}, "there is no GPU -1 here"),
        ({"byte_size": 201}, "the memory behind the raw_handle has 200 bytes, not 201"),
        ({"byte_size": 2**64 - 1}, "has 200 bytes"),
        ({"byte_size": 0}, "at least one"),
        ({"name": ""}, "can't be named ''"),
    ],
)
async def test_a_wrong_registration_is_refused_and_leaves_nothing_open(
    cudart: FakeCudart, registrar: LocalRegistrar, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        await registrar.register(registration(**changes))
    assert not cudart.live
    assert registrar.regions.status("", "cuda") == []


@pytest.mark.parametrize("call", range(2))
async def test_a_fault_while_it_is_opened_leaves_nothing_open(
    cudart: FakeCudart, registrar: LocalRegistrar, call: int
) -> None:
    cudart.failures = {call: Error.cudaErrorMemoryAllocation}
    with pytest.raises((RequestError, BackendError), match="words for cudaErrorMemoryAllocation"):
        await registrar.register(registration())
    assert not cudart.live


async def test_a_fault_while_it_is_copied_is_the_backends(cudart: FakeCudart, registrar: LocalRegistrar) -> None:
    await registrar.register(registration())
    cudart.failures = {len(cudart.calls): Error.cudaErrorIllegalAddress}
    with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
        registrar.regions.read("gpu", 0, 4, bytearray(4))
    registrar.regions.read("gpu", 0, 4, bytearray(4))


async def test_of_two_registrations_of_a_name_at_the_same_time_one_wins(
    cudart: FakeCudart, registrar: LocalRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    open_cuda_region = cuda_region.open_cuda_region

    def open_together(its: CudaRegistration) -> cuda_region.CudaRegion:
        both.wait(30)
        return open_cuda_region(its)

    monkeypatch.setattr("fuseline.serve.shared_memory.registrar.open_cuda_region", open_together)
    attempts = await asyncio.gather(*(registrar.register(registration()) for _ in range(2)), return_exceptions=True)
    (error,) = [attempt for attempt in attempts if attempt is not None]
    assert isinstance(error, RegionExistsError)
    del attempts, error
    await registrar.unregister("gpu", "cuda")
    await until_freed(cudart)


async def test_names_are_shared_with_system_memory(cudart: FakeCudart, registrar: LocalRegistrar) -> None:
    with shared_object(CONTENT) as path:
        registrar.regions.register("gpu", path.name, 0, 10)
        with pytest.raises(RegionExistsError, match="'gpu' is registered already"):
            await registrar.register(registration())
        await registrar.unregister("gpu", "cuda")
        assert len(registrar.regions.status("")) == 1


async def test_a_machine_without_a_gpu_says_why(registrar: LocalRegistrar, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> Cuda:
        raise BackendUnavailableError("no NVIDIA driver is installed on this machine")

    monkeypatch.setattr(cuda_region, "open_cuda", none_here)
    with pytest.raises(SharedMemoryUnavailableError, match=r"can't share a GPU's memory: no NVIDIA driver .*; or take"):
        await registrar.register(registration())


@pytest.mark.parametrize(("driver", "bindings"), [(True, True), (False, True), (True, False)])
def test_it_is_offered_where_a_driver_and_the_bindings_are(
    driver: bool, bindings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_region.ctypes, "CDLL", mock.Mock(side_effect=None if driver else OSError("none")))
    monkeypatch.setattr(cuda_region, "is_importable", lambda module: bindings and module == "cuda.bindings")
    may_share_cuda_memory.cache_clear()
    try:
        assert may_share_cuda_memory() == (driver and bindings)
    finally:
        may_share_cuda_memory.cache_clear()
