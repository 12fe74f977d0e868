"""A region of a GPU's memory that another process shares (CUDA Runtime API, interprocess communication)."""

import ctypes
import functools
import logging
import weakref
from contextlib import ExitStack

import numpy as np

from fuseline.serve.backends.gpu.cuda import Cuda, open_cuda
from fuseline.serve.backends.gpu.nvidia_driver import LIBRARY
from fuseline.serve.backends.registry import CUDA_BINDINGS, is_importable
from fuseline.serve.errors import (
    BackendError,
    BackendUnavailableError,
    RequestError,
    SharedMemoryUnavailableError,
)
from fuseline.serve.shared_memory.region import Region
from fuseline.serve.shared_memory.registration import CudaRegistration, check_registration

_LOG = logging.getLogger(__name__)


def open_cuda_region(registration: CudaRegistration) -> "CudaRegion":
    """Open the memory that `registration` names; the first time, CUDA takes a second or more to start.

    Raises:
        RequestError: the name, handle, device or size is wrong, or CUDA can't open the handle.
        SharedMemoryUnavailableError: cuda-bindings, the driver or a GPU is missing.
        BackendError: the GPU failed.
    """
    check_registration(registration)
    try:
        cuda = open_cuda()
    except BackendUnavailableError as error:
        raise SharedMemoryUnavailableError(
            f"the server can't share a GPU's memory: {error}; or take system shared memory, which needs no GPU"
        ) from error
    return _opened(registration, cuda)


@functools.cache
def may_share_cuda_memory() -> bool:
    """Return whether cuda-bindings and an NVIDIA driver are installed. CUDA is not started, so a GPU may be missing."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return is_importable(CUDA_BINDINGS.module)


class CudaRegion(Region):
    """Memory on a GPU, open until the last reference to the region has gone. Its size can't change."""

    def __init__(
        self, registration: CudaRegistration, cuda: Cuda, address: int, stream: int, opened: ExitStack
    ) -> None:
        """Copy from and to `address` by way of `stream`; `opened` frees both."""
        self.registration: CudaRegistration = registration
        self._cuda = cuda
        self._address = address
        self._stream = stream
        # A process that ends frees its part anyway, and CUDA may be gone by then.
        weakref.finalize(self, _close, cuda, registration.device_id, opened).atexit = False

    def read(self, offset: int, out: memoryview) -> None:
        """See `Region.read`. Raises `BackendError` if the GPU failed."""
        with self._cuda.on_device(self.registration.device_id):
            self._cuda.copy_to_host(_address(out), self._address + offset, len(out), self._stream)
            self._cuda.synchronise(self._stream)

    def write(self, offset: int, data: memoryview) -> None:
        """See `Region.write`. The client can read it as soon as this returns. Raises `BackendError`."""
        with self._cuda.on_device(self.registration.device_id):
            self._cuda.copy_to_device(self._address + offset, _address(data), len(data), self._stream)
            self._cuda.synchronise(self._stream)

    def check_reaches(self, end: int) -> None:
        """Return: the memory has the size that it had when it was opened."""


def _opened(registration: CudaRegistration, cuda: Cuda) -> CudaRegion:
    device, size = registration.device_id, registration.byte_size
    count = cuda.device_count()
    if not 0 <= device < count:
        raise RequestError(f"there is no GPU {device} here; CUDA shows the server {count}, numbered from 0")
    with cuda.on_device(device), ExitStack() as opened:
        try:
            address = opened.enter_context(cuda.ipc_memory(registration.raw_handle))
        except BackendError as error:
            raise RequestError(
                f"the raw_handle can't be opened on GPU {device} ({error}); the process that allocated the memory must "
                "live, on this machine, and number the GPUs as the server does (CUDA_VISIBLE_DEVICES)"
            ) from error
        if size > (there := cuda.bytes_after(address)):
            raise RequestError(f"the memory behind the raw_handle has {there} bytes, not {size}")
        stream = opened.enter_context(cuda.stream())
        return CudaRegion(registration, cuda, address, stream, opened.pop_all())


def _close(cuda: Cuda, device: int, opened: ExitStack) -> None:
    try:
        with cuda.on_device(device):
            opened.close()
    except BackendError as error:
        _LOG.warning("a region of GPU %d was not closed: %s", device, error)


def _address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)
