"""Choosing and opening a backend."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

# First, before a runtime is imported.
from serve.backends import no_telemetry  # noqa: F401  # isort: skip
from serve.backends.base import Backend
from serve.errors import BackendUnavailableError
from serve.model_package import ModelPackage

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class _Choice:
    name: str
    reason: str


def open_backend(
    package: ModelPackage,
    *,
    backend: str = "auto",
    precision: str = "auto",
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    threads: int = 0,
) -> tuple[Backend, str]:
    """Load `package` into a runtime; return the backend and, for people, why it was chosen.

    Args:
        backend: one of `BACKENDS`, or `auto`: TensorRT where a GPU and a fitting engine are, ONNX Runtime with CUDA
            where a GPU is, OpenVINO on an Intel or AMD CPU, else ONNX Runtime.
        precision: `fp32`, `fp16`, or `auto`: FP16 on a GPU where the package has it, else FP32. On CPUs both runtimes
            compute an FP16 graph in FP32, which gains nothing.
        buckets: batch sizes in rows to prepare for, ascending.
        threads: CPU threads of the runtime; 0 leaves it to the runtime.

    Raises:
        BackendUnavailableError: the asked-for backend can't run here, or none can; the message says what to install.
        PackageError: the artifact is missing or damaged.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(f"there is no backend {backend!r}; choose auto, {', '.join(BACKENDS)}")
    choice = (
        _choose(package, precision, buckets)
        if backend == "auto"
        else _Choice(backend, f"--backend {backend} was given")
    )
    return _open(choice.name, package, precision, tuple(sorted(buckets)), threads), choice.reason


def why_not_installed(backend: str) -> str | None:
    """None if the package behind `backend` can be imported, else one sentence that says what to install."""
    if backend == "onnxruntime" and importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'fuseline[cpu]'"
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'fuseline[cpu]'"
    return None


def _choose(package: ModelPackage, precision: str, buckets: Sequence[int]) -> _Choice:
    from serve.backends import onnxruntime as ort_backend
    from serve.backends import tensorrt as tensorrt_backend

    no_tensorrt = tensorrt_backend.why_unavailable(package, precision=precision, buckets=tuple(buckets))
    if no_tensorrt is None:
        return _Choice("tensorrt", "a GPU and an engine that fits it are here")
    no_onnxruntime = why_not_installed("onnxruntime")
    if no_onnxruntime is None and ort_backend.has_cuda():
        return _Choice("onnxruntime", f"ONNX Runtime sees a CUDA device (TensorRT: {no_tensorrt})")
    no_openvino = why_not_installed("openvino")
    if no_openvino is None:
        return _Choice("openvino", f"the fastest installed CPU runtime (TensorRT: {no_tensorrt})")
    if no_onnxruntime is None:
        return _Choice("onnxruntime", f"the installed CPU runtime ({no_openvino}; TensorRT: {no_tensorrt})")
    raise BackendUnavailableError(f"no runtime can serve: {no_onnxruntime}; {no_openvino}; TensorRT: {no_tensorrt}")


def _open(name: str, package: ModelPackage, precision: str, buckets: tuple[int, ...], threads: int) -> Backend:
    if (reason := why_not_installed(name)) is not None:
        raise BackendUnavailableError(reason)
    if name == "tensorrt":
        from serve.backends.tensorrt import open_tensorrt

        return open_tensorrt(package, precision=precision, buckets=buckets)
    if name == "openvino":
        from serve.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(package, precision=precision, buckets=buckets, threads=threads)
    from serve.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(package, precision=precision, buckets=buckets, threads=threads)
