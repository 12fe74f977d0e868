"""The methods about shared memory, against a server with a tiny real model."""

import re

import grpc
import pytest

from fuseline.protos.open_inference_pb2 import (
    CudaSharedMemoryRegisterRequest,
    CudaSharedMemoryStatusRequest,
    CudaSharedMemoryUnregisterRequest,
    ServerMetadataRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryUnregisterRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.services import open_inference_memory
from fuseline.serve.shared_memory import cuda_region
from tests.fakes.gpu import FakeCudart
from tests.serve.conftest import StartServer
from tests.serve.failures import failure, refusal
from tests.serve.shared_memory.objects import open_files, shared_object

HANDLE = bytes(range(64))


async def test_system_regions_are_registered_listed_and_unregistered(start_server: StartServer) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    with shared_object(size=8192) as path:
        for name, offset in (("one", 0), ("two", 100)):
            await stub.SystemSharedMemoryRegister(
                SystemSharedMemoryRegisterRequest(name=name, key=f"/{path.name}", offset=offset, byte_size=64)
            )
        two = await stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest(name="two"))
        status = two.regions["two"]
        assert len(two.regions) == 1
        assert (status.name, status.key, status.offset, status.byte_size) == ("two", f"/{path.name}", 100, 64)
        everything = await stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest())
        assert set(everything.regions) == {"one", "two"}
        taken = SystemSharedMemoryRegisterRequest(name="two", key=path.name, byte_size=1)
        code, _ = await refusal(stub.SystemSharedMemoryRegister(taken))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        await stub.SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest(name="one"))
        await stub.SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest(name="one"))
        code, details = await refusal(stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest(name="one")))
        assert (code, "'one' is registered" in details) == (grpc.StatusCode.NOT_FOUND, True)
        await stub.SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest())
        assert not (await stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest())).regions
        assert open_files(path) == 0


@pytest.mark.parametrize(
    "changes",
    [{"key": "/../etc/passwd"}, {"byte_size": 0}, {"offset": 2**64 - 1}, {"byte_size": 2**64 - 1}, {"name": ""}],
)
async def test_a_wrong_registration_is_an_invalid_argument(
    start_server: StartServer, changes: dict[str, object]
) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    with shared_object(size=4096) as path:
        request = SystemSharedMemoryRegisterRequest(**{"name": "mine", "key": path.name, "byte_size": 10} | changes)
        code, _ = await refusal(stub.SystemSharedMemoryRegister(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert open_files(path) == 0


async def test_cuda_regions_are_registered_listed_and_unregistered(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart = FakeCudart()
    cudart.share(HANDLE, bytes(100))
    monkeypatch.setattr(cuda_region, "open_cuda", lambda: Cuda(cudart, cudart))
    monkeypatch.setattr(open_inference_memory, "may_share_cuda_memory", lambda: True)
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    about = await stub.ServerMetadata(ServerMetadataRequest())
    assert {"system_shared_memory", "cuda_shared_memory"} < set(about.extensions)
    request = CudaSharedMemoryRegisterRequest(name="gpu", raw_handle=HANDLE, device_id=0, byte_size=100)
    await stub.CudaSharedMemoryRegister(request)
    code, _ = await refusal(stub.CudaSharedMemoryRegister(request))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    status = (await stub.CudaSharedMemoryStatus(CudaSharedMemoryStatusRequest(name="gpu"))).regions["gpu"]
    assert (status.name, status.device_id, status.byte_size) == ("gpu", 0, 100)
    code, details = await refusal(stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest(name="gpu")))
    assert (code, "it is cuda shared memory" in details) == (grpc.StatusCode.NOT_FOUND, True)
    await stub.CudaSharedMemoryUnregister(CudaSharedMemoryUnregisterRequest())
    assert not (await stub.CudaSharedMemoryStatus(CudaSharedMemoryStatusRequest())).regions
    assert not cudart.live


async def test_without_a_gpu_only_registering_its_memory_is_refused(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients, NVIDIA's examples among them, begin by unregistering whatever there is."""

    def none_here() -> Cuda:
        raise BackendUnavailableError("no NVIDIA driver is installed on this machine")

    monkeypatch.setattr(cuda_region, "open_cuda", none_here)
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    request = CudaSharedMemoryRegisterRequest(name="gpu", raw_handle=HANDLE, device_id=0, byte_size=100)
    error = await failure(stub.CudaSharedMemoryRegister(request))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(error.trailing_metadata())["fuseline-error"] == "SharedMemoryUnavailableError"
    assert re.search("no NVIDIA driver .*; or take system shared memory", error.details() or "")
    await stub.CudaSharedMemoryUnregister(CudaSharedMemoryUnregisterRequest())
    assert not (await stub.CudaSharedMemoryStatus(CudaSharedMemoryStatusRequest())).regions
    code, _ = await refusal(stub.CudaSharedMemoryStatus(CudaSharedMemoryStatusRequest(name="gpu")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_server_that_shares_no_memory_refuses_every_method_and_says_how_to_change_that(
    start_server: StartServer,
) -> None:
    stub = GRPCInferenceServiceStub((await start_server(shared_memory="off")).channel)
    for call in (
        stub.SystemSharedMemoryRegister(SystemSharedMemoryRegisterRequest(name="mine", key="x", byte_size=1)),
        stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest()),
        stub.SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest()),
        stub.CudaSharedMemoryRegister(CudaSharedMemoryRegisterRequest(name="mine", raw_handle=HANDLE, byte_size=1)),
        stub.CudaSharedMemoryStatus(CudaSharedMemoryStatusRequest()),
        stub.CudaSharedMemoryUnregister(CudaSharedMemoryUnregisterRequest()),
    ):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "started with --shared-memory off; start it with on, or auto" in details
    about = await stub.ServerMetadata(ServerMetadataRequest())
    assert not {"system_shared_memory", "cuda_shared_memory"} & set(about.extensions)
