"""Runs a TensorRT engine in lanes, with a CUDA graph for each lane and batch bucket."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fuseline.serve.backends.base import Infer
from fuseline.serve.backends.engine.library import check, logger_of
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import BackendError, PackageError
from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

_TYPE_OF = {np.dtype(row.dtype): row.tensorrt_type for row in INPUT_FORMATS.values()}
"""Type of an input's elements to its name in `tensorrt.DataType`."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """What one batch under way has to itself; the largest bucket fits, and a smaller one uses the beginning."""

    pixels: NDArray[Any]
    """Pinned memory for the pixels."""
    logits: NDArray[np.float32]
    """Pinned memory for the logits."""
    input: int
    """Address of the pixels on the GPU."""
    output: int
    """Address of the logits on the GPU."""
    copying: int
    """Stream of the copies in and out."""
    arrived: Any
    """Event that marks that the pixels are on the GPU."""
    computed: Any
    """Event that marks that the logits are there."""
    contexts: dict[int, Any] = field(default_factory=dict)
    """Execution context of each bucket. A graph replays what its context prepared, so it stays as long as the graph."""
    graphs: dict[int, Any] = field(default_factory=dict)
    """CUDA graph of each bucket, bound to the lane's addresses."""


class TensorRTBackend:
    """One engine on one GPU; see `fuseline.serve.backends.base.Backend`.

    All networks run on one stream, one after the other, so their contexts share the memory of the activations. Each
    lane copies on a stream of its own, and events order the two. So a batch crosses to the GPU while another lane's is
    computed, the next network starts while the logits of the one before are copied out, and no pixels wait for them.

    Each lane costs `buckets[-1]` rows of pixels and of logits, both on the GPU and as pinned memory of the host, and an
    execution context and a CUDA graph for each bucket. Weights and activations are there once.
    """

    name = "tensorrt"
    half_share: float | None = None

    def __init__(
        self,
        engine: Any,
        trt: Any,
        cuda: Cuda,
        *,
        row_shape: tuple[int, int, int],
        row_dtype: DTypeLike = np.uint8,
        input_name: str = INPUT_NAME,
        output_name: str = OUTPUT_NAME,
        classes: int,
        precision: str,
        device: str,
        buckets: tuple[int, ...],
    ) -> None:
        """Take over `engine` and open the lane of `infer`. On failure everything is released.

        Raises:
            PackageError: the engine's inputs and outputs are not those of a model with these names, rows and classes.
            BackendError: a CUDA or TensorRT call failed.
        """
        expected = {
            input_name: (trt.DataType.__members__[_TYPE_OF[np.dtype(row_dtype)]], (-1, *row_shape)),
            output_name: (trt.DataType.FLOAT, (-1, classes)),
        }
        _check_tensors(engine, expected)
        self.precision = precision
        self.device = device
        self.buckets = buckets
        self._row_shape = row_shape
        self._row_dtype: np.dtype[Any] = np.dtype(row_dtype)
        self._input_name, self._output_name = input_name, output_name
        self._classes = classes
        self._engine: Any = engine
        self._trt = trt
        self._cuda = cuda
        self._lanes: list[_Lane] = []
        # Keeps a batch's calls on the computing stream together: another's network among them would be waited for too.
        self._turn = Lock()
        with ExitStack() as stack:
            self._computing = stack.enter_context(cuda.stream())
            self._scratch = stack.enter_context(cuda.device_memory(max(engine.device_memory_size_v2, 1)))
            self._lanes.append(self._new_lane(stack))
            self._resources = stack.pop_all()

    def infer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """See `fuseline.serve.backends.base.Backend.infer`."""
        return self._compute(self._lanes[0], pixels)

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        """See `fuseline.serve.backends.base.Backend.open_lanes`; no batch may be under way.

        The first lane is that of `infer`. Lanes stay open: a later call adds those that are missing. When one can't be
        opened, those that the call added are released, and the others go on.
        """
        self._check_open()
        with ExitStack() as stack:
            added = [self._new_lane(stack) for _ in range(count - len(self._lanes))]
            self._resources.enter_context(stack.pop_all())
        self._lanes += added
        return tuple(partial(self._compute, lane) for lane in self._lanes[:count])

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`; no batch may be under way."""
        self._resources.close()
        # The weights, which no context holds any more.
        self._engine = None

    def _compute(self, lane: _Lane, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Do `infer` in `lane`, which has no other batch under way."""
        self._check_open()
        rows = len(pixels)
        if rows not in lane.graphs or pixels.shape[1:] != self._row_shape or pixels.dtype != self._row_dtype:
            raise BackendError(
                f"the TensorRT backend got {pixels.dtype} rows of shape {pixels.shape}; it takes {self._row_dtype} "
                f"of shape (rows, {', '.join(map(str, self._row_shape))}) with rows one of "
                f"{', '.join(map(str, self.buckets))}"
            )
        cuda, host_pixels, host_logits = self._cuda, lane.pixels[:rows], lane.logits[:rows]
        host_pixels[:] = pixels
        cuda.copy_to_device(lane.input, host_pixels.ctypes.data, host_pixels.nbytes, lane.copying)
        cuda.record(lane.arrived, lane.copying)
        with self._turn:
            cuda.hold_until(self._computing, lane.arrived)
            cuda.launch(lane.graphs[rows], self._computing)
            cuda.record(lane.computed, self._computing)
        cuda.hold_until(lane.copying, lane.computed)
        cuda.copy_to_host(host_logits.ctypes.data, lane.output, host_logits.nbytes, lane.copying)
        cuda.synchronise(lane.copying)
        return host_logits.copy()

    def _check_open(self) -> None:
        if self._engine is None:
            raise BackendError("the TensorRT backend was closed")

    def _new_lane(self, stack: ExitStack) -> _Lane:
        """Allocate a lane, and capture every bucket in it; `stack` releases it."""
        cuda, rows = self._cuda, self.buckets[-1]
        input_bytes = rows * math.prod(self._row_shape) * self._row_dtype.itemsize
        output_bytes = rows * self._classes * np.dtype(np.float32).itemsize
        copying = stack.enter_context(cuda.stream())
        pixels = stack.enter_context(cuda.pinned_memory(input_bytes))
        logits = stack.enter_context(cuda.pinned_memory(output_bytes))
        lane = _Lane(
            pixels=pixels.view(self._row_dtype).reshape(rows, *self._row_shape),
            logits=logits.view(np.float32).reshape(rows, -1),
            input=stack.enter_context(cuda.device_memory(input_bytes)),
            output=stack.enter_context(cuda.device_memory(output_bytes)),
            copying=copying,
            arrived=stack.enter_context(cuda.event()),
            computed=stack.enter_context(cuda.event()),
        )
        stack.callback(lane.contexts.clear)
        logger_of(self._trt).recent_errors.clear()
        for bucket in self.buckets:
            self._capture(stack, lane, bucket)
        return lane

    def _capture(self, stack: ExitStack, lane: _Lane, rows: int) -> None:
        """Run `rows` rows once, since a context prepares itself on its first run, then capture the same as a graph."""
        cuda, stream, trt = self._cuda, self._computing, self._trt
        context = lane.contexts[rows] = _new_context(self._engine, trt)
        context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        check(context.set_input_shape(self._input_name, (rows, *self._row_shape)), f"take {rows} rows", trt)
        check(context.set_tensor_address(self._input_name, lane.input), "bind its input", trt)
        check(context.set_tensor_address(self._output_name, lane.output), "bind its output", trt)

        def enqueue() -> None:
            check(context.execute_async_v3(stream), f"run {rows} rows", trt)

        enqueue()
        cuda.synchronise(stream)
        lane.graphs[rows] = stack.enter_context(cuda.graph(stream, enqueue))


def _check_tensors(engine: Any, expected: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))) for name in names}
    if found != expected:
        raise PackageError(
            f"the engine has the tensors {_described(found)}, the manifest describes {_described(expected)}; "
            "export the model again"
        )


def _described(tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype.name} {shape}" for name, (dtype, shape) in tensors.items())


def _new_context(engine: Any, trt: Any) -> Any:
    """Return an execution context whose activations lie in memory that it is given."""
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return check(engine.create_execution_context(user_managed), "create an execution context", trt)
    # TensorRT for RTX compiles kernels for a shape in the background while a generic one answers; a graph would keep
    # the generic one for ever. Eagerly, the run before the capture compiles them.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(user_managed)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return check(engine.create_execution_context(config), "create an execution context", trt)
