"""Runs a TensorRT engine: one execution context and one CUDA graph for each batch bucket, on two streams."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.engine.library import check, logger_of
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import BackendError, PackageError
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

SLOTS = 2
"""Number of batches under way at a time: while one is computed, the pixels of the next cross to the GPU."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """The memory and events of one batch under way; the largest bucket fits, and a smaller one uses the beginning."""

    pixels: NDArray[np.uint8]
    """Pinned memory for the pixels."""
    logits: NDArray[np.float32]
    """Pinned memory for the logits."""
    device_pixels: int
    """Address of the pixels on the GPU."""
    arrived: Any
    """Event that marks that the pixels are on the GPU."""
    answered: Any
    """Event that marks that the logits are in pinned memory."""


class TensorRTBackend:
    """One engine on one GPU; see `fuseline.serve.backends.base.Backend`.

    A batch goes from pinned memory to the GPU on one stream, and through the network and back on another, so that the
    pixels of a batch cross while the one before is computed. For that two threads may be in `infer` at a time; more
    wait. A CUDA graph is bound to shapes and addresses. Hence there is one for each bucket, and all read and write the
    same device memory, into which a batch's pixels are copied within the GPU when it is that batch's turn.
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
        classes: int,
        precision: str,
        device: str,
        buckets: tuple[int, ...],
    ) -> None:
        """Take over `engine`, allocate, and run and capture every bucket. On failure everything is released.

        Raises:
            PackageError: the engine's inputs and outputs are not those of a model of `row_shape` and `classes`.
            BackendError: a CUDA or TensorRT call failed.
        """
        _check_tensors(engine, trt, row_shape, classes)
        self.precision = precision
        self.device = device
        self.buckets = buckets
        self._row_shape = row_shape
        self._cuda = cuda
        self._contexts: list[Any] = []
        self._graphs: dict[int, Any] = {}
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        # The work that one batch puts on the streams must not be mixed with another's.
        self._turn = Lock()
        logger_of(trt).recent_errors.clear()
        input_bytes = buckets[-1] * math.prod(row_shape)
        output_bytes = buckets[-1] * classes * np.dtype(np.float32).itemsize
        with ExitStack() as stack:
            self._copying = stack.enter_context(cuda.stream())
            self._computing = stack.enter_context(cuda.stream())
            for _ in range(SLOTS):
                self._free.put(self._new_slot(stack, buckets[-1], input_bytes, output_bytes))
            self._input = stack.enter_context(cuda.device_memory(input_bytes))
            self._output = stack.enter_context(cuda.device_memory(output_bytes))
            scratch_bytes = engine.device_memory_size_v2
            scratch = stack.enter_context(cuda.device_memory(max(scratch_bytes, 1)))
            # A graph replays what its context prepared, so the contexts stay as long as the graphs.
            stack.callback(self._contexts.clear)
            stack.callback(self._graphs.clear)
            for rows in buckets:
                context = _new_context(engine, trt)
                self._contexts.append(context)
                context.set_device_memory(scratch, scratch_bytes)
                self._capture(stack, context, trt, rows)
            self._resources = stack.pop_all()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `fuseline.serve.backends.base.Backend.infer`."""
        if not self._graphs:
            raise BackendError("the TensorRT backend was closed")
        rows = len(pixels)
        if rows not in self._graphs or pixels.shape[1:] != self._row_shape or pixels.dtype != np.uint8:
            raise BackendError(
                f"the TensorRT backend got {pixels.dtype} pixels of shape {pixels.shape}; it takes uint8 of shape "
                f"(rows, {', '.join(map(str, self._row_shape))}) with rows one of {', '.join(map(str, self.buckets))}"
            )
        slot = self._free.get()
        try:
            slot.pixels[:rows] = pixels
            with self._turn:
                self._enqueue(slot, rows)
            self._cuda.wait(slot.answered)
            return slot.logits[:rows].copy()
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`; no thread may be in `infer`."""
        self._resources.close()

    def _new_slot(self, stack: ExitStack, rows: int, input_bytes: int, output_bytes: int) -> _Slot:
        cuda = self._cuda
        pixels = stack.enter_context(cuda.pinned_memory(input_bytes))
        logits = stack.enter_context(cuda.pinned_memory(output_bytes))
        return _Slot(
            pixels=pixels.reshape(rows, *self._row_shape),
            logits=logits.view(np.float32).reshape(rows, -1),
            device_pixels=stack.enter_context(cuda.device_memory(input_bytes)),
            arrived=stack.enter_context(cuda.event()),
            answered=stack.enter_context(cuda.event()),
        )

    def _enqueue(self, slot: _Slot, rows: int) -> None:
        cuda, pixels, logits = self._cuda, slot.pixels[:rows], slot.logits[:rows]
        cuda.copy_to_device(slot.device_pixels, pixels.ctypes.data, pixels.nbytes, self._copying)
        cuda.record(slot.arrived, self._copying)
        cuda.hold_until(self._computing, slot.arrived)
        cuda.copy_on_device(self._input, slot.device_pixels, pixels.nbytes, self._computing)
        cuda.launch(self._graphs[rows], self._computing)
        # On the copying stream the logits would wait for the network, and the next batch's pixels for the logits.
        cuda.copy_to_host(logits.ctypes.data, self._output, logits.nbytes, self._computing)
        cuda.record(slot.answered, self._computing)

    def _capture(self, stack: ExitStack, context: Any, trt: Any, rows: int) -> None:
        """Run `rows` rows once, since a context prepares itself on its first run, then capture the same as a graph."""
        cuda, stream = self._cuda, self._computing
        check(context.set_input_shape(INPUT_NAME, (rows, *self._row_shape)), f"take {rows} rows", trt)
        check(context.set_tensor_address(INPUT_NAME, self._input), "bind its input", trt)
        check(context.set_tensor_address(OUTPUT_NAME, self._output), "bind its output", trt)

        def enqueue() -> None:
            check(context.execute_async_v3(stream), f"run {rows} rows", trt)

        enqueue()
        cuda.synchronise(stream)
        self._graphs[rows] = stack.enter_context(cuda.graph(stream, enqueue))


def _check_tensors(engine: Any, trt: Any, row_shape: tuple[int, int, int], classes: int) -> None:
    expected = {
        INPUT_NAME: (trt.DataType.UINT8, (-1, *row_shape)),
        OUTPUT_NAME: (trt.DataType.FLOAT, (-1, classes)),
    }
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
