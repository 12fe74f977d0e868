"""OpenVINO on a CPU."""

import platform
from collections import Counter
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer, OpenRequest
from fuseline.serve.backends.onnx_artifact import onnx_artifact, read_graph, why_no_graph, why_unwanted
from fuseline.serve.backends.registry import why_not_installed
from fuseline.serve.errors import BackendError, BackendUnavailableError, VerificationError
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.precision import LEAST_SHARE, PRECISIONS, chosen_unasked
from fuseline.serve.process.cpu import this_cpu

_CORE_LOCK = Lock()

_LAYER_TYPES = ("Convolution", "FullyConnected", "MatMul")
"""Types of convolutions and matrix products in an execution graph."""


def open(package: ModelPackage, request: OpenRequest) -> "OpenVinoBackend":
    """See `fuseline.serve.backends.registry.BackendModule`."""
    precision = _chosen_precision(package) if request.precision == "auto" else request.precision
    if (reason := why_no_openvino(precision)) is not None:
        raise BackendUnavailableError(reason)
    return OpenVinoBackend(package, precision=precision, buckets=request.buckets, threads=request.threads)


def why_unavailable(package: ModelPackage | None, request: OpenRequest) -> str | None:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    return why_no_openvino(request.precision) or why_no_graph(package, request.precision, reader="cpu")


def _chosen_precision(package: ModelPackage) -> str:
    """Return what `auto` is for `package` on this CPU."""
    possible = (
        name for name in chosen_unasked("cpu") if (why_unwanted(package, name) or why_no_openvino(name)) is None
    )
    return next(possible, "fp32")


class OpenVinoBackend:
    """One ONNX graph compiled for the CPU; see `fuseline.serve.backends.base.Backend`."""

    name = "openvino"
    device = "CPU"

    def __init__(self, package: ModelPackage, *, precision: str, buckets: tuple[int, ...], threads: int) -> None:
        """Compile the graph of `precision`.

        Raises:
            VerificationError: OpenVINO computes too few layers in `precision`, to which it was to round.
        """
        import openvino as ov

        artifact = onnx_artifact(package, precision, reader="cpu")
        graph = read_graph(package, artifact)
        try:
            self._graph: Any = _core().read_model(graph)
            # Compiling takes memory enough beside them.
            del graph
            self._request: Any = _compiled(self._graph, precision, threads=threads).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {ov.__version__} can't load {artifact.path}: {error}") from error
        self.precision: str = precision
        self.half_share: float | None = None
        if precision != artifact.precision:
            self.half_share = checked_share(layer_types(self._request.get_compiled_model()), precision)
        self.buckets = buckets
        self._threads = threads
        self._lanes: list[Any] = []

    def infer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
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
            compiled = _compiled(self._graph, self.precision, threads=self._threads, streams=count)
            lanes = [compiled.create_infer_request() for _ in range(count)]
        except RuntimeError as error:
            raise BackendError(f"OpenVINO can't open {count} streams: {error}") from error
        if self.half_share is not None:
            checked_share(layer_types(compiled), self.precision)
        self._lanes = lanes
        return tuple(partial(self._lane, number) for number in range(count))

    def _lane(self, number: int, pixels: NDArray[Any]) -> NDArray[np.float32]:
        if not self._lanes:
            raise BackendError("the OpenVINO backend was closed")
        return _logits(self._lanes[number], pixels)

    def close(self) -> None:
        """See `fuseline.serve.backends.base.Backend.close`."""
        self._request = self._graph = None
        self._lanes = []


def _logits(request: Any, pixels: NDArray[Any]) -> NDArray[np.float32]:
    from openvino import Tensor

    # An array in a list costs 20 us more: OpenVINO's Python code looks for its input and makes the tensor.
    tensor = Tensor(np.ascontiguousarray(pixels), shared_memory=True)
    try:
        logits: NDArray[np.float32] = request.infer(tensor, share_inputs=True, share_outputs=False)[0]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed on {pixels.dtype} rows of shape {pixels.shape}: {error}") from error
    return logits


def why_no_openvino(precision: str) -> str | None:
    """Return why OpenVINO can't compute in `precision` on this CPU; None if it can."""
    if (reason := why_not_installed("openvino")) is not None:
        return reason
    if precision == "int8" and platform.machine() in ("x86_64", "AMD64") and not this_cpu().int8:
        # On such CPUs oneDNN adds pairs of products in 16 bits, and has no exact alternative.
        return "its INT8 products overflow on CPUs without VNNI, and this one tells of none; ONNX Runtime's don't"
    if precision == "bf16" and "BF16" not in cpu_capabilities():
        # It would round all the same on any CPU with AVX-512, and be slower than in FP32.
        return "this CPU has neither AVX512_BF16 nor AMX, which compute in BF16; --precision fp32 works on any"
    return None


@cache
def cpu_capabilities() -> frozenset[str]:
    """Return what OpenVINO says that this CPU computes in without emulation: `FP32`, `BF16`, `INT8` and others."""
    return frozenset(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def graph_runner(graph: bytes) -> Infer:
    """See `fuseline.serve.backends.registry.BackendModule`."""
    request = open_request(graph)
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=False)[0]


def open_request(graph: Path | bytes, *, precision: str = "fp32") -> Any:
    """Return an OpenVINO inference request of `graph`, an ONNX file or its bytes, compiled for the CPU as for serving.

    Raises:
        RuntimeError: OpenVINO can't read or compile `graph`.
    """
    return _compiled(_core().read_model(graph), precision).create_infer_request()


def _compiled(graph: Any, precision: str, *, threads: int = 0, streams: int = 1) -> Any:
    """Return `graph` compiled as `compile_config` says. Raises `RuntimeError` when OpenVINO can't compile it."""
    return _core().compile_model(graph, "CPU", compile_config(precision, threads=threads, streams=streams))


def compile_config(precision: str, *, threads: int = 0, streams: int = 1) -> dict[str, Any]:
    """Return the properties with which a graph is compiled to be computed in `precision`, on `threads` in all.

    0 threads leave their number to OpenVINO.
    """
    # Unless BF16 was asked for, what isn't quantised is computed in FP32: the default on CPUs with BF16 units would
    # round unasked.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    # Batches are formed before they come here, so one request uses all the cores: the latency hint. Each of several
    # streams has its part of them.
    config |= {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    return config


def layer_types(compiled: Any) -> Counter[str]:
    """Return the number of convolutions and matrix products that a compiled model computes in each type, as `bf16`.

    They are told by its execution graph, which is what the runtime made of the hint, and whole before the first batch.
    """
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return Counter(
        node["runtimePrecision"].astype(str) for node in nodes if node["layerType"].astype(str) in _LAYER_TYPES
    )


def checked_share(types: Counter[str], precision: str) -> float:
    """Return the share, 0 to 1, that `precision` has in `types`, a result of `layer_types`.

    Raises:
        VerificationError: the share is too small.
    """
    import openvino as ov

    row, total = PRECISIONS[precision], types.total()
    share = types[precision] / total if total else 0.0
    if share < LEAST_SHARE:
        found = ", ".join(f"{count} in {name}" for name, count in sorted(types.items())) or "none at all"
        raise VerificationError(
            f"OpenVINO {ov.__version__} was asked for {row.title}, but by its own execution graph it computes {found} "
            f"of {total} convolutions and matrix products; at least {LEAST_SHARE:.0%} were expected in {precision}. "
            f"Serve with --precision {row.graph}; another version of OpenVINO may do better"
        )
    return share


def _core() -> Any:
    """Return the one core of this process, which is never destroyed.

    For its first model a core gives the calling thread a stack on which signals are handled, and unmaps it when it is
    destroyed. If that happens in another thread, or before a younger core's end, the thread keeps the address, and the
    next signal that Python handles there ends the process with SIGSEGV (`SigAltStackSetup` in OpenVINO's CPU plugin).
    """
    # `cache` alone would make two for threads that ask at once.
    with _CORE_LOCK:
        return _new_core()


@cache
def _new_core() -> Any:
    import openvino as ov

    return ov.Core()
