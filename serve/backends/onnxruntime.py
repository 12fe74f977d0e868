"""ONNX Runtime: on a CPU, or on an NVIDIA GPU through its CUDA provider."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer, OpenRequest
from fuseline.serve.backends.bound_session import BoundSession
from fuseline.serve.backends.onnx_artifact import Reader, onnx_artifact, read_graph, why_no_graph
from fuseline.serve.backends.registry import why_not_installed
from fuseline.serve.errors import BackendError, BackendUnavailableError, FuselineError
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.process.cpu import this_cpu, usable_cpus


def open(package: ModelPackage, request: OpenRequest) -> "OnnxRuntimeBackend":
    """See `fuseline.serve.backends.registry.BackendModule`."""
    if (reason := _why_no_runtime(request)) is not None:
        raise BackendUnavailableError(reason)
    return OnnxRuntimeBackend(
        package,
        precision=request.precision,
        buckets=request.buckets,
        threads=request.threads,
        cuda=request.device == "gpu",
    )


def why_unavailable(package: ModelPackage | None, request: OpenRequest) -> str | None:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    reader: Reader = "cuda" if request.device == "gpu" else "cpu"
    return _why_no_runtime(request) or why_no_graph(package, request.precision, reader=reader)


def _why_no_runtime(request: OpenRequest) -> str | None:
    reason = why_not_installed("onnxruntime")
    return reason or (why_no_cuda(request.precision) if request.device == "gpu" else None)


class OnnxRuntimeBackend:
    """One ONNX graph in one ONNX Runtime session; see `fuseline.serve.backends.base.Backend`."""

    name = "onnxruntime"
    half_share: float | None = None

    def __init__(
        self, package: ModelPackage, *, precision: str, buckets: tuple[int, ...], threads: int, cuda: bool
    ) -> None:
        """Load the graph onto the CPU or, with `cuda`, the GPU; raise `BackendUnavailableError` if that can't be."""
        import onnxruntime as ort

        if cuda:
            # CUDA and cuDNN come as Python packages, which the loader doesn't find by itself.
            ort.preload_dlls()
            # cuDNN's frontend logs an error for each kernel that it tries and can't use, hundreds at each opening, in
            # the default logger; a final failure is raised.
            ort.set_default_logger_severity(4)
        artifact = onnx_artifact(package, precision, reader="cuda" if cuda else "cpu")
        try:
            self._session: Any = open_session(read_graph(package, artifact), threads=threads, cuda=cuda)
        except FuselineError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime {ort.__version__} can't load {artifact.path}: {error}") from error
        if cuda and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailableError(
                f"a GPU is here, but ONNX Runtime {ort.__version__} can't load CUDA and cuDNN for it: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self.device = "GPU (CUDA)" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "CPU"
        self.precision: str = artifact.precision
        self.buckets = buckets
        self._names = package.manifest.input.name, package.manifest.output_name
        self._package, self._artifact = package, artifact
        self._threads = threads
        self._lanes: Any = None
        self._bound: BoundSession | None = None
        if cuda:
            try:
                self._bound = BoundSession(
                    self._session,
                    buckets=buckets,
                    row_shape=package.manifest.input.row_shape,
                    classes=package.manifest.classes,
                    device="cuda",
                )
            except Exception as error:
                raise BackendError(f"ONNX Runtime {ort.__version__} can't capture {artifact.path}: {error}") from error

    def infer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """See `fuseline.serve.backends.base.Backend.infer`."""
        return self._checked(self._run if self._bound is None else self._bound.infer, pixels)

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        """See `fuseline.serve.backends.base.Backend.open_lanes`; no batch may be under way.

        On a CPU the lanes are calls of one session, so that they share its weights. Such a call computes on the thread
        that makes it and on those of the session, which are as many as make up one for each core with the callers.
        """
        self._check_open()
        self._lanes = None
        try:
            if self._bound is not None:
                return tuple(partial(self._checked, lane) for lane in self._bound.open_lanes(count))
            if count:
                # The session keeps none of the graph's bytes, so they are read and checked again.
                graph = read_graph(self._package, self._artifact)
                self._lanes = open_session(graph, threads=max(1, (self._threads or usable_cpus()) - count + 1))
        except FuselineError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime can't have {count} batches under way at a time: {error}") from error
        return (partial(self._checked, self._run_lane),) * count

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`."""
        if self._bound is not None:
            self._bound.close()
        self._bound = self._session = self._lanes = None

    def _run(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return _logits(self._session, pixels, *self._names)

    def _run_lane(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return _logits(self._lanes, pixels, *self._names)

    def _checked(self, infer: Infer, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return what `infer` returns; raise `BackendError` when it fails, or the backend was closed."""
        self._check_open()
        try:
            return infer(pixels)
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on {pixels.dtype} rows of shape {pixels.shape}: {error}"
            ) from error

    def _check_open(self) -> None:
        if self._session is None:
            raise BackendError("the ONNX Runtime backend was closed")


def _logits(session: Any, pixels: NDArray[Any], input_name: str, output_name: str) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run([output_name], {input_name: pixels})[0]
    return logits


def open_session(graph: Path | bytes, *, threads: int = 0, cuda: bool = False) -> Any:
    """Return an ONNX Runtime session of `graph`, a file or its bytes, configured as for serving: CUDA graphs on a GPU.

    Raises:
        Exception: whatever ONNX Runtime raises on a graph that it can't load.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # A memory pattern for each bucket keeps a block of activations for each: 140 MB more for ResNet-18 at 224.
    options.enable_mem_pattern = cuda
    # Spinning workers take the cores that the front end and the decoders need between batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not this_cpu().int8:
        # Without VNNI the fast INT8 products of x86 overflow 16 bits. With VNNI the exact ones would take three times
        # as long.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # TF32, the provider's default, keeps 11 of an FP32 number's 24 bits.
    on_gpu = [("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})] if cuda else []
    session = ort.InferenceSession(graph, options, providers=[*on_gpu, "CPUExecutionProvider"])
    if isinstance(graph, bytes):
        # The session would hold them to load the graph once more, on another provider than it was measured with.
        session.disable_fallback()
        session._model_bytes = None
    return session


def graph_runner(graph: bytes) -> Infer:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    session = open_session(graph)
    names = {"input_name": session.get_inputs()[0].name, "output_name": session.get_outputs()[0].name}
    return partial(_logits, session, **names)


def why_no_cuda(precision: str = "auto") -> str | None:
    """Return why ONNX Runtime can't compute in `precision` with CUDA: its build, or no device; None if it can."""
    import onnxruntime as ort

    # The provider is listed by every onnxruntime-gpu build, with a GPU or without.
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "the installed build has no CUDA"
    if precision == "int8":
        return "its CUDA provider has no INT8 convolutions; TensorRT has, and so have the CPU runtimes"
    return None if _driver_has_device() else "no NVIDIA driver with a GPU is here"


def _driver_has_device() -> bool:
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return bool(driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)
