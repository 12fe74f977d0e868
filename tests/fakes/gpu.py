"""A GPU that isn't there: CUDA's runtime as cuda-bindings gives it, and a TensorRT engine that runs on it.

Work is asynchronous as on a GPU: nothing that is put on a stream happens before someone waits for it, and streams wait
for each other only where an event makes them. As late as possible is what shows a missing wait. Memory is
real host memory, so results are computed from what was really copied to the bound addresses; a copy or a kernel that
leaves live memory, or mixes up host and device, fails as it would on a GPU.
"""

import ctypes
import enum
import json
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class IpcHandle:
    """A `cudaIpcMemHandle_t`, zeroed at first."""

    def __init__(self) -> None:
        self.memory = (ctypes.c_uint8 * 64)()

    def getPtr(self):
        return ctypes.addressof(self.memory)


class Event:
    """Marks the work on a stream up to the latest record."""

    def __init__(self) -> None:
        self.stream: int | None = None
        self.ticket = 0


_MEMORY = {
    Kind.cudaMemcpyHostToDevice: ("device", "pinned"),
    Kind.cudaMemcpyDeviceToHost: ("pinned", "device"),
}


class FakeCudart:
    """Stands in for the module `cuda.bindings.runtime`, and for `cuda.bindings.driver`."""

    cudaError_t = Error
    cudaIpcMemHandle_t = IpcHandle
    cudaIpcMemLazyEnablePeerAccess = 1
    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)

    def __init__(self, capability: tuple[int, int] = (8, 9), driver: int = 13020, devices: int = 1) -> None:
        self.capability = capability
        self.driver = driver
        self.devices = devices
        self.calls: list[str] = []
        self.failures: dict[int, Error] = {}
        """Which call, counted from 0, fails with what."""
        self.live: dict[int, tuple[str, object]] = {}
        """Handle or address -> its kind and what it holds; empty when everything was released."""
        self.capturing: list[Callable[[], Error]] | None = None
        self.before_wait: Callable[[], None] = lambda: None
        """Called by a thread that is about to wait for a stream."""
        self.pageable = False
        """Whether copies may be from and into host memory that CUDA did not allocate: a GPU takes it, but is slow."""
        self.shared: dict[bytes, tuple[int, object]] = {}
        """Handle -> the device that the memory of another process is on, and the memory."""
        self.opened: Counter[int] = Counter()
        """Address of such memory -> how often this process has it open."""
        self._devices = threading.local()
        self._next_handle = 16
        self._ticket = 0
        # The GPU does its work once, whoever waits for it.
        self._gpu = threading.RLock()

    def cudaGetDeviceCount(self):
        if self.driver < 13000:
            return Error.cudaErrorInsufficientDriver, None
        return (Error.cudaSuccess, self.devices) if self.devices else (Error.cudaErrorNoDevice, 0)

    def cudaDriverGetVersion(self):
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self):
        return Error.cudaSuccess, 13000

    def cudaGetErrorString(self, status):
        return Error.cudaSuccess, f"words for {status.name}".encode()

    def cudaGetDevice(self):
        return Error.cudaSuccess, getattr(self._devices, "current", 0)

    def cudaSetDevice(self, device):
        if not 0 <= device < self.devices:
            return (Error.cudaErrorInvalidDevice,)
        self._devices.current = device
        return (Error.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attribute, device):
        return Error.cudaSuccess, self.capability[attribute - 75]

    def cudaGetDeviceProperties(self, device):
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake RTX 4090\0\0\0", totalGlobalMem=24 * 2**30)

    def cudaStreamCreateWithFlags(self, flags):
        return self._acquire("cudaStreamCreateWithFlags", "stream", [])

    def cudaStreamDestroy(self, stream):
        if self.capturing is not None:
            return (Error.cudaErrorInvalidValue,)
        return self._let_go("cudaStreamDestroy", "stream", stream)

    def cudaMalloc(self, bytes):
        return self._allocate("cudaMalloc", "device", bytes)

    def cudaFree(self, address):
        return self._let_go("cudaFree", "device", address)

    def share(self, raw_handle: bytes, content: bytes, device: int = 0):
        """Let another process have `content` on `device`, which it shares by `raw_handle`; return its memory."""
        memory = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
        self.shared[raw_handle] = (device, memory)
        return memory

    def cudaIpcOpenMemHandle(self, handle, flags):
        if status := self._called("cudaIpcOpenMemHandle"):
            return status, None
        device, memory = self.shared.get(bytes(handle.memory), (None, None))
        if device is None or device != self.cudaGetDevice()[1]:
            return Error.cudaErrorInvalidValue, None
        address = ctypes.addressof(memory)
        self.opened[address] += 1
        self.live[address] = ("device", memory)
        return Error.cudaSuccess, address

    def cudaIpcCloseMemHandle(self, address):
        if self.opened[address] > 1:
            self.opened[address] -= 1
            return (self._called("cudaIpcCloseMemHandle"),)
        self.opened.pop(address, None)
        return self._let_go("cudaIpcCloseMemHandle", "device", address)

    def cuMemGetAddressRange(self, address):
        for start, (kind, memory) in self.live.items():
            if kind == "device" and start <= address < start + len(memory):
                return Error.cudaSuccess, start, len(memory)
        return Error.cudaErrorInvalidValue, None, None

    def cudaMallocHost(self, bytes):
        return self._allocate("cudaMallocHost", "pinned", bytes)

    def cudaFreeHost(self, address):
        return self._let_go("cudaFreeHost", "pinned", address)

    def cudaStreamBeginCapture(self, stream, mode):
        if status := self._called("cudaStreamBeginCapture"):
            return (status,)
        assert self.capturing is None
        self.capturing = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        captured, self.capturing = self.capturing, None
        if status := self._called("cudaStreamEndCapture"):
            return status, None
        return self._new_handle("graph", captured)

    def cudaGraphInstantiate(self, graph, flags):
        return self._acquire("cudaGraphInstantiate", "executable", list(self.live[graph][1]))

    def cudaGraphDestroy(self, graph):
        return self._let_go("cudaGraphDestroy", "graph", graph)

    def cudaGraphExecDestroy(self, executable):
        return self._let_go("cudaGraphExecDestroy", "executable", executable)

    def cudaMemcpyAsync(self, target, source, bytes, kind, stream):
        if status := self._called("cudaMemcpyAsync"):
            return (status,)
        expected = _MEMORY[kind]

        def copy() -> Error:
            if not (self.holds(expected[0], target, bytes) and self.holds(expected[1], source, bytes)):
                return Error.cudaErrorIllegalAddress
            ctypes.memmove(target, source, bytes)
            return Error.cudaSuccess

        self.enqueue(stream, copy)
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, executable, stream):
        if status := self._called("cudaGraphLaunch"):
            return (status,)
        for work in self.live[executable][1]:
            self.enqueue(stream, work)
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        self.before_wait()
        # A wait that reports a fault has waited too: nothing is left on the stream.
        status = self._called("cudaStreamSynchronize")
        return (self._run(stream, None) or status,)

    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        return self._acquire("cudaEventCreateWithFlags", "event", Event())

    def cudaEventDestroy(self, event):
        return self._let_go("cudaEventDestroy", "event", event)

    def cudaEventRecord(self, event, stream):
        if status := self._called("cudaEventRecord"):
            return (status,)
        with self._gpu:
            mark = self.live[event][1]
            mark.stream, mark.ticket = stream, self._enqueued(stream, lambda: Error.cudaSuccess)
        return (Error.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        if status := self._called("cudaStreamWaitEvent"):
            return (status,)
        # What was recorded until now counts, whatever is recorded later.
        recorded, ticket = self.live[event][1].stream, self.live[event][1].ticket
        self.enqueue(stream, lambda: Error.cudaSuccess if recorded is None else self._run(recorded, ticket))
        return (Error.cudaSuccess,)

    def enqueue(self, stream: int, work: Callable[[], Error]) -> None:
        assert self.live[stream][0] == "stream"
        if self.capturing is None:
            self._enqueued(stream, work)
        else:
            self.capturing.append(work)

    def _enqueued(self, stream: int, work: Callable[[], Error]) -> int:
        with self._gpu:
            self._ticket += 1
            self.live[stream][1].append((self._ticket, work))
            return self._ticket

    def _run(self, stream: int, ticket: int | None) -> Error:
        """Do the work of `stream` up to `ticket`, or all of it; the first fault ends it, as on a GPU."""
        with self._gpu:
            queue = self.live[stream][1]
            while queue and (ticket is None or queue[0][0] <= ticket):
                if status := queue.pop(0)[1]():
                    return status
            return Error.cudaSuccess

    def holds(self, kind: str, address: int, bytes: int) -> bool:
        """Whether these bytes lie within one live allocation of `kind`, or are host memory that may be `pageable`."""
        allocations = [
            (held, start, start + len(memory))
            for start, (held, memory) in self.live.items()
            if held in ("device", "pinned")
        ]
        if any(held == kind and start <= address and address + bytes <= end for held, start, end in allocations):
            return True
        apart = all(address + bytes <= start or end <= address for _, start, end in allocations)
        return kind == "pinned" and self.pageable and apart

    def _called(self, function: str) -> Error:
        self.calls.append(function)
        return self.failures.get(len(self.calls) - 1, Error.cudaSuccess)

    def _acquire(self, function: str, kind: str, content: object):
        if status := self._called(function):
            return status, None
        return self._new_handle(kind, content)

    def _new_handle(self, kind: str, content: object):
        self._next_handle += 1
        self.live[self._next_handle] = (kind, content)
        return Error.cudaSuccess, self._next_handle

    def _allocate(self, function: str, kind: str, bytes: int):
        if status := self._called(function):
            return status, None
        memory = (ctypes.c_uint8 * bytes)()
        self.live[ctypes.addressof(memory)] = (kind, memory)
        return Error.cudaSuccess, ctypes.addressof(memory)

    def _let_go(self, function: str, kind: str, handle: int):
        status = self._called(function)
        if self.live.get(handle, ("nothing",))[0] != kind:
            return (Error.cudaErrorInvalidValue,)
        del self.live[handle]
        return (status,)


DataType = enum.Enum("DataType", ["UINT8", "FLOAT", "HALF"])
_NUMPY_TYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16"}


class FakeTensorRT:
    """Stands in for the modules `tensorrt` and, with `rtx`, `tensorrt_rtx`."""

    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    DataType = DataType
    LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])

    def __init__(self, *, rtx: bool = False) -> None:
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.__version__ = "11.4.0"
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", ["LAZY", "EAGER", "NONE"])


class FakeEngine:
    """Computes logit `c` of a row as `c + 1` times the mean of its pixels."""

    def __init__(
        self,
        cudart: FakeCudart,
        *,
        row_shape=(4, 4, 3),
        classes=3,
        max_batch=32,
        scratch_bytes=1024,
        types=DataType,
        input_type=None,
        names=("image", "logits"),
    ) -> None:
        """`input_type` is of `types`, by default its UINT8; `names` are those of input and output."""
        self.cudart = cudart
        self.row_shape = row_shape
        self.classes = classes
        self.types = types
        self.input_type = types.UINT8 if input_type is None else input_type
        self.input_name, self.output_name = names
        self.max_batch = max_batch
        self.device_memory_size_v2 = scratch_bytes
        self.num_io_tensors = 2
        self.contexts: list[FakeContext] = []
        self.refused: str | None = None
        """Name of the method of its contexts that answers False, or `create_execution_context`, that answers None."""
        self.layers: list[object] = ["convolution"]
        """As its inspector tells of them; by default as of an engine that was built without details."""

    def get_tensor_name(self, index):
        return (self.input_name, self.output_name)[index]

    def get_tensor_dtype(self, name):
        return self.input_type if name == self.input_name else self.types.FLOAT

    def get_tensor_shape(self, name):
        return (-1, *self.row_shape) if name == self.input_name else (-1, self.classes)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": self.layers}))

    def create_runtime_config(self):
        config = SimpleNamespace(strategy=None, dynamic_shapes_kernel_specialization_strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, how):
        if self.refused == "create_execution_context":
            return None
        self.contexts.append(FakeContext(self, how))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine: FakeEngine, how: object) -> None:
        self.engine = engine
        self.how = how
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.runs: list[str] = []
        """`run` or `captured`, in order."""

    def set_device_memory(self, address, bytes):
        self.scratch = (address, bytes)

    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)
        return self.engine.refused != "set_input_shape" and self.shape[0] <= self.engine.max_batch

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.engine.refused != "set_tensor_address"

    def execute_async_v3(self, stream):
        cudart = self.engine.cudart
        self.runs.append("run" if cudart.capturing is None else "captured")
        if self.engine.refused in ("execute_async_v3", f"execute_async_v3 when {self.runs[-1]}"):
            return False
        rows, shape, classes = self.shape[0], self.shape, self.engine.classes

        def kernel() -> Error:
            image, scores = self.engine.input_name, self.engine.output_name
            dtype = np.dtype(_NUMPY_TYPES[self.engine.input_type.name])
            sizes = {image: int(np.prod(shape)) * dtype.itemsize, scores: rows * classes * 4}
            if not all(cudart.holds("device", self.addresses[name], size) for name, size in sizes.items()):
                return Error.cudaErrorIllegalAddress
            if self.scratch[1] < self.engine.device_memory_size_v2 or not cudart.holds("device", *self.scratch):
                return Error.cudaErrorIllegalAddress
            pixels = _at(self.addresses[image], sizes[image]).view(dtype).reshape(rows, -1)
            logits = _at(self.addresses[scores], sizes[scores]).view(np.float32).reshape(rows, classes)
            logits[:] = expected_logits(pixels, classes)
            return Error.cudaSuccess

        cudart.enqueue(stream, kernel)
        return True


def expected_logits(pixels, classes):
    return pixels.reshape(len(pixels), -1).mean(axis=1, dtype=np.float32)[:, None] * np.arange(1, classes + 1)


def _at(address: int, bytes: int):
    return np.ctypeslib.as_array((ctypes.c_uint8 * bytes).from_address(address))
