"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU: one execution context and one CUDA graph for each batch bucket."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from serve.backends.cuda import Cuda, Gpu, open_cuda
from serve.backends.tensorrt_engine import (
    LIBRARIES,
    NAMES,
    EngineDetails,
    check,
    engine_from_plan,
    import_library,
    logger_of,
    why_unfit,
)
from serve.errors import BackendError, BackendUnavailableError, PackageError
from serve.model_package import INPUT_NAME, OUTPUT_NAME, Artifact, ModelPackage

PRECISIONS_BEST_FIRST = ("fp16", "fp32")


def open_tensorrt(package: ModelPackage, *, precision: str, buckets: tuple[int, ...]) -> "TensorRTBackend":
    """Load the engine of `package` that fits this machine.

    Args:
        package: the model; its manifest says what each engine was built for.
        precision: `fp16`, `fp32`, or `auto`: FP16 if there is such an engine that fits, else FP32.
        buckets: batch sizes in rows, ascending; all within the engine's batch profile.

    Raises:
        BackendUnavailableError: there is no GPU, no engine that fits it, or its library is not installed or refuses it.
        PackageError: the engine's file is damaged, or the engine is of another model than the manifest says.
        BackendError: the GPU failed, or has too little memory.
    """
    choice = _choose(package, precision, buckets)
    trt = import_library(choice.details.library)
    try:
        engine = engine_from_plan(trt, package.read(choice.artifact))
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{choice.artifact.path}: {error}; {_how_to_get(choice.gpu)}") from error
    return TensorRTBackend(
        engine,
        trt,
        choice.cuda,
        row_shape=package.manifest.input.row_shape,
        classes=package.manifest.classes,
        precision=choice.artifact.precision,
        device=f"{choice.gpu.name} ({NAMES[choice.details.library]})",
        buckets=buckets,
    )


def why_unavailable(package: ModelPackage, *, precision: str = "auto", buckets: tuple[int, ...] = ()) -> str | None:
    """None if `open_tensorrt` has an engine to try here, else one sentence that says why not and what to do.

    Cheap: engine files are not read; the runtime is imported only where a GPU and an engine for it are.
    """
    try:
        _choose(package, precision, buckets)
    except BackendUnavailableError as error:
        return str(error)
    return None


class TensorRTBackend:
    """One engine on one GPU; see `serve.backends.base.Backend`.

    A batch goes pinned memory, device, network, device, pinned memory in one launch of a CUDA graph. A graph is bound
    to shapes and addresses, hence one for each bucket; since one batch runs at a time, all share the buffers, the
    activation memory and a single stream: a second stream would have nothing to overlap with.
    """

    name = "tensorrt"

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
        logger_of(trt).recent_errors.clear()
        with ExitStack() as stack:
            self._stream = stack.enter_context(cuda.stream())
            self._allocate(stack, buckets[-1], classes)
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
        """See `serve.backends.base.Backend.infer`."""
        if not self._graphs:
            raise BackendError("the TensorRT backend was closed")
        rows = len(pixels)
        if rows not in self._graphs or pixels.shape[1:] != self._row_shape or pixels.dtype != np.uint8:
            raise BackendError(
                f"the TensorRT backend got {pixels.dtype} pixels of shape {pixels.shape}; it takes uint8 of shape "
                f"(rows, {', '.join(map(str, self._row_shape))}) with rows one of {', '.join(map(str, self.buckets))}"
            )
        self._pixels[:rows] = pixels
        self._cuda.launch(self._graphs[rows], self._stream)
        self._cuda.synchronise(self._stream)
        return self._logits[:rows].copy()

    def close(self) -> None:
        """See `serve.backends.base.Backend.close`."""
        self._resources.close()

    def _allocate(self, stack: ExitStack, rows: int, classes: int) -> None:
        """Allocate the buffers of the largest bucket, on the host and on the GPU; every bucket uses their beginning."""
        input_bytes = rows * math.prod(self._row_shape)
        output_bytes = rows * classes * np.dtype(np.float32).itemsize
        host_input = stack.enter_context(self._cuda.pinned_memory(input_bytes))
        host_output = stack.enter_context(self._cuda.pinned_memory(output_bytes))
        self._pixels = host_input.reshape(rows, *self._row_shape)
        self._logits = host_output.view(np.float32).reshape(rows, classes)
        self._pixels.fill(0)
        self._device_input = stack.enter_context(self._cuda.device_memory(input_bytes))
        self._device_output = stack.enter_context(self._cuda.device_memory(output_bytes))

    def _capture(self, stack: ExitStack, context: Any, trt: Any, rows: int) -> None:
        """Run `rows` rows once, since a context prepares itself on its first run, then capture the same as a graph."""
        cuda, stream = self._cuda, self._stream
        pixels, logits = self._pixels[:rows], self._logits[:rows]
        check(context.set_input_shape(INPUT_NAME, pixels.shape), f"take {rows} rows", trt)
        check(context.set_tensor_address(INPUT_NAME, self._device_input), "bind its input", trt)
        check(context.set_tensor_address(OUTPUT_NAME, self._device_output), "bind its output", trt)

        def enqueue() -> None:
            cuda.copy_to_device(self._device_input, pixels.ctypes.data, pixels.nbytes, stream)
            check(context.execute_async_v3(stream), f"run {rows} rows", trt)
            cuda.copy_to_host(logits.ctypes.data, self._device_output, logits.nbytes, stream)

        enqueue()
        cuda.synchronise(stream)
        self._graphs[rows] = stack.enter_context(cuda.graph(stream, enqueue))


@dataclass(frozen=True, slots=True)
class _Choice:
    artifact: Artifact
    details: EngineDetails
    cuda: Cuda
    gpu: Gpu


def _choose(package: ModelPackage, precision: str, buckets: tuple[int, ...]) -> _Choice:
    # Before the engines: without a GPU nothing about them matters to the user.
    cuda = open_cuda()
    gpu = cuda.gpu()
    wanted = PRECISIONS_BEST_FIRST if precision == "auto" else (precision,)
    engines = sorted(
        (a for a in package.manifest.artifacts if a.format in LIBRARIES and a.precision in wanted),
        key=lambda artifact: wanted.index(artifact.precision),
    )
    if not engines:
        of_precision = "" if precision == "auto" else f" {precision}"
        raise BackendUnavailableError(
            f"package {package.manifest.name} has no{of_precision} TensorRT engine; {_how_to_get(gpu)}"
        )
    reasons = []
    for artifact in engines:
        try:
            details = EngineDetails.model_validate(artifact.details)
            reason = why_unfit(details, capability=gpu.capability, buckets=buckets)
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
            reason = f"its details in the manifest are no engine's: {fields}"
        except BackendUnavailableError as error:
            reason = str(error)
        if reason is None:
            return _Choice(artifact, details, cuda, gpu)
        reasons.append(f"{artifact.path}: {reason}")
    raise BackendUnavailableError(
        f"no engine of package {package.manifest.name} fits the {gpu.name} here: {'; '.join(reasons)}; "
        f"{_how_to_get(gpu)}"
    )


def _how_to_get(gpu: Gpu) -> str:
    return f"the server builds no engines, `fuseline export --engine {gpu.capability}` does"


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
    """An execution context whose activations live in memory that it is given."""
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return check(engine.create_execution_context(user_managed), "create an execution context", trt)
    # TensorRT for RTX compiles kernels for a shape in the background while a generic one answers; a graph would
    # keep the generic one for ever. Eagerly, the run before the capture compiles them.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(user_managed)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return check(engine.create_execution_context(config), "create an execution context", trt)
