"""A graph in memory run by the CPU runtimes that will serve it, exactly as they will."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.batch_rows import batch_rows
from fuseline.serve.backends import why_not_installed
from fuseline.serve.backends.base import Infer, OpenRequest
from fuseline.serve.backends.registry import CPU_BACKENDS, backend_entry
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

_BATCH_PIXELS = 16 * 224 * 224
_MAX_BATCH_ROWS = 64


def logits_by_runtime(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Backend to logits (n, classes) of `pixels` (n, h, w, c), of the CPU backends that serve INT8 here."""
    graph, runners = serialised(model), {}
    for name in CPU_BACKENDS:
        backend = backend_entry(name, "cpu").load()
        if backend.why_unavailable(None, OpenRequest("cpu", (), "int8")) is None:
            runners[name] = backend.graph_runner(graph)
    return {name: _in_batches(run, pixels) for name, run in runners.items()}


def onnxruntime_logits(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (n, classes) of `pixels` (n, h, w, c) by ONNX Runtime."""
    session = onnxruntime_session(model)
    return _in_batches(lambda rows: session.run([OUTPUT_NAME], {INPUT_NAME: rows})[0], pixels)


def onnxruntime_session(model: onnx.ModelProto) -> Any:
    """`model` in an ONNX Runtime session on the CPU, configured as for serving.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if (reason := why_not_installed("onnxruntime")) is not None:
        raise BackendUnavailableError(reason)
    from fuseline.serve.backends.onnxruntime import open_session

    return open_session(serialised(model))


def serialised(model: onnx.ModelProto) -> bytes:
    """The bytes of `model`, the same for the same graph."""
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _in_batches(infer: Infer, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = batch_rows(pixels, budget_pixels=_BATCH_PIXELS, most=_MAX_BATCH_ROWS)
    return np.concatenate([infer(pixels[start : start + rows]) for start in range(0, len(pixels), rows)])
