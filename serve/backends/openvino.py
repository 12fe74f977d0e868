"""OpenVINO on a CPU."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer, OpenRequest
from fuseline.serve.backends.onnx_artifact import onnx_artifact, why_no_graph
from fuseline.serve.backends.registry import why_not_installed
from fuseline.serve.cpu import this_cpu
from fuseline.serve.errors import BackendError, BackendUnavailableError
from fuseline.serve.model_package import ModelPackage


def open(package: ModelPackage, request: OpenRequest) -> "OpenVinoBackend":
    """See `fuseline.serve.backends.registry.BackendModule`."""
    if (reason := why_no_openvino(request.precision)) is not None:
        raise BackendUnavailableError(reason)
    return OpenVinoBackend(package, precision=request.precision, buckets=request.buckets, threads=request.threads)


def why_unavailable(package: ModelPackage | None, request: OpenRequest) -> str | None:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    return why_no_openvino(request.precision) or why_no_graph(package, request.precision, reader="cpu")


class OpenVinoBackend:
    """One ONNX graph compiled for the CPU; see `fuseline.serve.backends.base.Backend`."""

    name = "openvino"
    device = "CPU"

    def __init__(self, package: ModelPackage, *, precision: str, buckets: tuple[int, ...], threads: int) -> None:
        import openvino as ov

        artifact = onnx_artifact(package, precision, reader="cpu")
        path = package.checked_path(artifact)
        try:
            self._request: Any = open_request(path, threads=threads)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} can't load {artifact.path}: {error}") from error
        self.precision: str = artifact.precision
        self.buckets = buckets

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `fuseline.serve.backends.base.Backend.infer`."""
        if self._request is None:
            raise BackendError("the OpenVINO backend was closed")
        try:
            outputs = self._request.infer([pixels], share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on {pixels.shape} pixels: {error}") from error
        logits: NDArray[np.float32] = outputs[0]
        return logits

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`."""
        self._request = None


def why_no_openvino(precision: str) -> str | None:
    """Return why OpenVINO can't compute a graph in `precision` on this CPU; None if it can."""
    if (reason := why_not_installed("openvino")) is not None:
        return reason
    if precision == "int8" and platform.machine() in ("x86_64", "AMD64") and not this_cpu().int8:
        # On such CPUs oneDNN adds pairs of products in 16 bits, and has no exact alternative.
        return "its INT8 products overflow on CPUs without VNNI, and this one tells of none; ONNX Runtime's don't"
    return None


def graph_runner(graph: bytes) -> Infer:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    request = open_request(graph, threads=0)
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=False)[0]


def open_request(graph: Path | bytes, *, threads: int = 0) -> Any:
    """Return an OpenVINO inference request of `graph`, an ONNX file or its bytes, compiled for the CPU as for serving.

    Raises:
        RuntimeError: OpenVINO can't read or compile `graph`.
    """
    # Batches are formed before they come here, so one request uses all the cores: the latency hint. What isn't
    # quantised is computed in FP32: the default on CPUs with BF16 units would round to BF16 unasked.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    core = _core()
    return core.compile_model(core.read_model(graph), "CPU", config).create_infer_request()


@cache
def _core() -> Any:
    """Return the one core of this process, which is never destroyed.

    For its first model a core gives the calling thread a stack on which signals are handled, and unmaps it when it is
    destroyed. If that happens in another thread, or before a younger core's end, the thread keeps the address, and the
    next signal that Python handles there ends the process with SIGSEGV (`SigAltStackSetup` in OpenVINO's CPU plugin).
    """
    import openvino as ov

    return ov.Core()
