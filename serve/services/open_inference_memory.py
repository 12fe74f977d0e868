"""Triton's shared-memory extensions of inference.GRPCInferenceService: regions are registered, listed, unregistered."""

from grpc.aio import ServicerContext

from fuseline.protos.open_inference_pb2 import (
    CudaSharedMemoryRegisterRequest,
    CudaSharedMemoryRegisterResponse,
    CudaSharedMemoryStatusRequest,
    CudaSharedMemoryStatusResponse,
    CudaSharedMemoryUnregisterRequest,
    CudaSharedMemoryUnregisterResponse,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryRegisterResponse,
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryStatusResponse,
    SystemSharedMemoryUnregisterRequest,
    SystemSharedMemoryUnregisterResponse,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from fuseline.serve.services.calls import answer_or_abort, await_or_abort
from fuseline.serve.shared_memory.cuda_region import may_share_cuda_memory
from fuseline.serve.shared_memory.registrar import Registrar
from fuseline.serve.shared_memory.registration import CudaRegistration, SystemRegistration


class SharedMemoryMethods(GRPCInferenceServiceServicer):
    """Answers the methods about shared memory.

    Each raises `SharedMemoryUnavailableError` if the server shares no memory. Without a GPU there are no CUDA regions,
    which is no error but for `cuda_shared_memory_register`: clients unregister all of them before they use others.
    """

    def __init__(self, registrar: Registrar) -> None:
        """Register regions with `registrar`."""
        self._registrar = registrar

    @property
    def memory_extensions(self) -> tuple[str, ...]:
        """Names of the extensions that are served."""
        if not self._registrar.regions.is_on:
            return ()
        return ("system_shared_memory", "cuda_shared_memory") if may_share_cuda_memory() else ("system_shared_memory",)

    def system_shared_memory_status(self, name: str) -> SystemSharedMemoryStatusResponse:
        """Return the system region of that name or, for an empty name, each. Raises `UnknownRegionError`."""
        response = SystemSharedMemoryStatusResponse()
        for registration in self._registrar.regions.status(name, "system"):
            assert isinstance(registration, SystemRegistration)
            response.regions[registration.name].MergeFrom(
                SystemSharedMemoryStatusResponse.RegionStatus(
                    name=registration.name,
                    key=registration.key,
                    offset=registration.offset,
                    byte_size=registration.byte_size,
                )
            )
        return response

    async def system_shared_memory_register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a part of a POSIX shared memory object. Raises what `Registrar.register` does."""
        await self._registrar.register(SystemRegistration(name, key, offset, byte_size))

    async def system_shared_memory_unregister(self, name: str) -> None:
        """Forget the system region of that name, if there is one, or, for an empty name, each."""
        await self._registrar.unregister(name, "system")

    def cuda_shared_memory_status(self, name: str) -> CudaSharedMemoryStatusResponse:
        """Return the CUDA region of that name or, for an empty name, each. Raises `UnknownRegionError`."""
        response = CudaSharedMemoryStatusResponse()
        for registration in self._registrar.regions.status(name, "cuda"):
            assert isinstance(registration, CudaRegistration)
            response.regions[registration.name].MergeFrom(
                CudaSharedMemoryStatusResponse.RegionStatus(
                    name=registration.name, device_id=registration.device_id, byte_size=registration.byte_size
                )
            )
        return response

    async def cuda_shared_memory_register(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Register memory on a GPU; `raw_handle` is a `cudaIpcMemHandle_t`. Raises what `Registrar.register` does."""
        await self._registrar.register(CudaRegistration(name, raw_handle, device_id, byte_size))

    async def cuda_shared_memory_unregister(self, name: str) -> None:
        """Forget the CUDA region of that name, if there is one, or, for an empty name, each."""
        await self._registrar.unregister(name, "cuda")

    async def SystemSharedMemoryStatus(  # noqa: N802
        self,
        request: SystemSharedMemoryStatusRequest,
        context: ServicerContext[SystemSharedMemoryStatusRequest, SystemSharedMemoryStatusResponse],
    ) -> SystemSharedMemoryStatusResponse:
        """Answer `system_shared_memory_status`."""
        return await answer_or_abort(context, lambda: self.system_shared_memory_status(request.name))

    async def SystemSharedMemoryRegister(  # noqa: N802
        self,
        request: SystemSharedMemoryRegisterRequest,
        context: ServicerContext[SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse],
    ) -> SystemSharedMemoryRegisterResponse:
        """Answer `system_shared_memory_register`."""
        await await_or_abort(
            context,
            self.system_shared_memory_register(request.name, request.key, request.offset, request.byte_size),
        )
        return SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self,
        request: SystemSharedMemoryUnregisterRequest,
        context: ServicerContext[SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse],
    ) -> SystemSharedMemoryUnregisterResponse:
        """Answer `system_shared_memory_unregister`."""
        await await_or_abort(context, self.system_shared_memory_unregister(request.name))
        return SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(  # noqa: N802
        self,
        request: CudaSharedMemoryStatusRequest,
        context: ServicerContext[CudaSharedMemoryStatusRequest, CudaSharedMemoryStatusResponse],
    ) -> CudaSharedMemoryStatusResponse:
        """Answer `cuda_shared_memory_status`."""
        return await answer_or_abort(context, lambda: self.cuda_shared_memory_status(request.name))

    async def CudaSharedMemoryRegister(  # noqa: N802
        self,
        request: CudaSharedMemoryRegisterRequest,
        context: ServicerContext[CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse],
    ) -> CudaSharedMemoryRegisterResponse:
        """Answer `cuda_shared_memory_register`."""
        await await_or_abort(
            context,
            self.cuda_shared_memory_register(request.name, request.raw_handle, request.device_id, request.byte_size),
        )
        return CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(  # noqa: N802
        self,
        request: CudaSharedMemoryUnregisterRequest,
        context: ServicerContext[CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse],
    ) -> CudaSharedMemoryUnregisterResponse:
        """Answer `cuda_shared_memory_unregister`."""
        await await_or_abort(context, self.cuda_shared_memory_unregister(request.name))
        return CudaSharedMemoryUnregisterResponse()
