"""The part of CUDA's runtime API that the server needs, through NVIDIA's cuda-bindings; every status is checked."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.registry import CUDA_BINDINGS
from fuseline.serve.errors import BackendError, BackendUnavailableError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that CUDA shows this process; CUDA_VISIBLE_DEVICES chooses which one that is."""

    name: str
    capability: str
    """Compute capability as engines name it: `sm89` is 8.9."""
    memory_bytes: int


def open_cuda() -> "Cuda":
    """Return CUDA's runtime, after checking that a GPU is there.

    Raises:
        BackendUnavailableError: cuda-bindings isn't installed, the driver is missing or too old, or no GPU is visible.
    """
    try:
        from cuda.bindings import driver, runtime
    except ImportError as error:
        raise BackendUnavailableError(f"cuda-bindings can't be imported ({error}): {CUDA_BINDINGS.install}") from error
    cuda = Cuda(runtime, driver)
    if (reason := cuda.why_no_gpu()) is not None:
        raise BackendUnavailableError(reason)
    return cuda


class Cuda:
    """CUDA's runtime API on the current device.

    Each resource comes as a context manager, so that its release can't be forgotten. A failed acquisition or launch
    raises `BackendError` with CUDA's own words; a failed release is only logged, since the fault that broke the device
    was raised where it happened.
    """

    def __init__(self, api: Any, driver: Any = None) -> None:
        """Use `api`, the module `cuda.bindings.runtime` or a stand-in for it, and `cuda.bindings.driver` likewise.

        The latter is needed for `bytes_after` alone.
        """
        self._api = api
        self._driver = driver

    def why_no_gpu(self) -> str | None:
        """Return one sentence that says what is missing; None if a GPU answers."""
        status, count = self._api.cudaGetDeviceCount()
        if status == self._api.cudaError_t.cudaSuccess and count > 0:
            return None
        _, driver_version = self._api.cudaDriverGetVersion()
        if not driver_version:
            return "no NVIDIA driver is installed on this machine; CUDA needs one and a GPU"
        needed = self._call("cudaRuntimeGetVersion")
        if status == self._api.cudaError_t.cudaErrorInsufficientDriver:
            return (
                f"the NVIDIA driver is too old: it serves CUDA {_version(driver_version)}, cuda-bindings needs "
                f"{_version(needed)}; update the driver"
            )
        return f"no GPU is visible ({self._words(status)}); look at nvidia-smi and CUDA_VISIBLE_DEVICES"

    def gpu(self) -> Gpu:
        """Return the current device."""
        attributes = self._api.cudaDeviceAttr
        device = self._call("cudaGetDevice")
        major = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        properties = self._call("cudaGetDeviceProperties", device)
        return Gpu(properties.name.split(b"\0")[0].decode(), f"sm{major}{minor}", int(properties.totalGlobalMem))

    def device_count(self) -> int:
        """Return the number of GPUs that CUDA shows this process."""
        return int(self._call("cudaGetDeviceCount"))

    @contextmanager
    def on_device(self, device: int) -> Iterator[None]:
        """Let `device` be this thread's current device within the block."""
        before = self._call("cudaGetDevice")
        self._call("cudaSetDevice", device)
        try:
            yield
        finally:
            self._release("cudaSetDevice", before)

    @contextmanager
    def stream(self) -> Iterator[int]:
        """Yield a stream that doesn't wait for the default one."""
        stream = self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)
        try:
            yield int(stream)
        finally:
            self._release("cudaStreamDestroy", stream)

    @contextmanager
    def event(self) -> Iterator[Any]:
        """Yield an event, which marks a place in the work of a stream."""
        event = self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)
        try:
            yield event
        finally:
            self._release("cudaEventDestroy", event)

    @contextmanager
    def device_memory(self, bytes: int) -> Iterator[int]:
        """Yield the address of `bytes` bytes on the GPU, aligned to 256 bytes."""
        address = int(self._call("cudaMalloc", bytes))
        try:
            yield address
        finally:
            self._release("cudaFree", address)

    @contextmanager
    def ipc_memory(self, raw_handle: bytes) -> Iterator[int]:
        """Yield the address, on the current device, of memory that another process shares.

        `raw_handle` is its `cudaIpcMemHandle_t`, of CUDA_IPC_HANDLE_SIZE bytes.
        """
        handle = self._api.cudaIpcMemHandle_t()
        ctypes.memmove(handle.getPtr(), raw_handle, len(raw_handle))
        address = int(self._call("cudaIpcOpenMemHandle", handle, self._api.cudaIpcMemLazyEnablePeerAccess))
        try:
            yield address
        finally:
            self._release("cudaIpcCloseMemHandle", address)

    def bytes_after(self, address: int) -> int:
        """Return the number of bytes from `address` to the end of its allocation on the current device."""
        status, start, size = self._driver.cuMemGetAddressRange(address)
        if int(status):
            raise BackendError(f"cuMemGetAddressRange failed (CUresult {int(status)})")
        return int(start) + int(size) - address

    @contextmanager
    def pinned_memory(self, bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Yield `bytes` bytes of page-locked host memory as an array, which must not be touched afterwards."""
        address = int(self._call("cudaMallocHost", bytes))
        try:
            yield np.ctypeslib.as_array((ctypes.c_uint8 * bytes).from_address(address))
        finally:
            self._release("cudaFreeHost", address)

    @contextmanager
    def graph(self, stream: int, enqueue: Callable[[], None]) -> Iterator[Any]:
        """Yield an executable graph of the work that `enqueue` puts on `stream`; none of it runs here."""
        # The mode is thread-local: another model that is loading on its own thread must not break this capture.
        self._call("cudaStreamBeginCapture", stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture mode before it can be used or destroyed; the status reports the same fault.
            _, graph = self._api.cudaStreamEndCapture(stream)
            if graph is not None and int(graph):
                self._release("cudaGraphDestroy", graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._release("cudaGraphDestroy", graph)
        try:
            yield executable
        finally:
            self._release("cudaGraphExecDestroy", executable)

    def copy_to_device(self, device_address: int, host_address: int, bytes: int, stream: int) -> None:
        """Enqueue a copy from pinned memory, or from other memory of this process, for which this call may wait."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device_address, host_address, bytes, kind, stream)

    def copy_to_host(self, host_address: int, device_address: int, bytes: int, stream: int) -> None:
        """Enqueue a copy into pinned memory, or into other memory of this process, for which this call waits."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host_address, device_address, bytes, kind, stream)

    def record(self, event: Any, stream: int) -> None:
        """Let `event` mark what has been enqueued on `stream` so far."""
        self._call("cudaEventRecord", event, stream)

    def hold_until(self, stream: int, event: Any) -> None:
        """Let what is enqueued on `stream` from now on wait for what `event` marks."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def launch(self, graph: Any, stream: int) -> None:
        """Enqueue what `graph` captured."""
        self._call("cudaGraphLaunch", graph, stream)

    def synchronise(self, stream: int) -> None:
        """Wait for everything that was enqueued on `stream`; its faults are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, function)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            raise BackendError(f"{function} failed: {self._words(status)}")
        return values[0] if values else None

    def _release(self, function: str, handle: Any) -> None:
        (status,) = getattr(self._api, function)(handle)
        if status != self._api.cudaError_t.cudaSuccess:
            _LOG.warning("%s failed: %s", function, self._words(status))

    def _words(self, status: Any) -> str:
        _, words = self._api.cudaGetErrorString(status)
        return f"{words.decode()} (cudaError {int(status)})"


def _version(number: int) -> str:
    """Return CUDA's version number 13020 as 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"
