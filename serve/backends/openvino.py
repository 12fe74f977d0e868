"""OpenVINO on a CPU."""

import platform
from functools import partial
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
            self._graph: Any = ov.Core().read_model(path)
            self._request: Any = _compiled(self._graph, threads=threads).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} can't load {artifact.path}: {error}") from error
        self.precision: str = artifact.precision
        self.buckets = buckets
        self._threads = threads
        self._lanes: list[Any] = []

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `fuseline.serve.backends.base.Backend.infer`."""
        if self._request is None:
            raise BackendError("the OpenVINO backend was closed")
        return _logits(self._request, pixels)

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        """See `fuseline.serve.backends.base.Backend.open_lanes`.

        The lanes are OpenVINO's streams: each has its part of the threads, and all share one copy of the weights.
        """
        self._lanes = []
        if not count:
            return ()
        try:
            compiled = _compiled(self._graph, threads=self._threads, streams=count)
            self._lanes = [compiled.create_infer_request() for _ in range(count)]
        except RuntimeError as error:
            raise BackendError(f"OpenVINO can't open {count} streams: {error}") from error
        return tuple(partial(self._lane, number) for number in range(count))

    def _lane(self, number: int, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self._lanes:
            raise BackendError("the OpenVINO backend was closed")
        return _logits(self._lanes[number], pixels)

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`."""
        self._request = self._graph = None
        self._lanes = []


def _logits(request: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        logits: NDArray[np.float32] = request.infer([pixels], share_inputs=True, share_outputs=False)[0]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed on {pixels.shape} pixels: {error}") from error
    return logits


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
    request = open_request(graph)
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=False)[0]


def open_request(graph: Path | bytes) -> Any:
    """Return an OpenVINO inference request of `graph`, an ONNX file or its bytes, compiled for the CPU as for serving.

    Raises:
        RuntimeError: OpenVINO can't read or compile `graph`.
    """
    import openvino as ov

    return _compiled(ov.Core().read_model(graph), threads=0).create_infer_request()


def _compiled(graph: Any, *, threads: int, streams: int = 1) -> Any:
    """Return `graph` compiled for the CPU with `threads` in all; 0 leaves their number to OpenVINO.

    Raises:
        RuntimeError: OpenVINO can't compile it.
    """
    import openvino as ov

    # What isn't quantised is computed in FP32: the default on CPUs with BF16 units would round to BF16 unasked.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    # One request uses all the cores: the latency hint. Each of several streams has its part of them.
    config |= {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    return ov.Core().compile_model(graph, "CPU", config)
