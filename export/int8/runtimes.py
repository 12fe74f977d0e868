"""A graph in memory run by the CPU runtimes that will serve it, exactly as they will."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.batch_rows import batch_rows
from fuseline.serve.backends import why_not_installed
from fuseline.serve.backends.openvino import why_no_openvino
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

_BATCH_PIXELS = 16 * 224 * 224
_MAX_BATCH_ROWS = 64

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def logits_by_runtime(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Runtime to logits (n, classes) of `pixels` (n, h, w, c): ONNX Runtime, and OpenVINO where it serves INT8."""
    runtimes: dict[str, Callable[[onnx.ModelProto], Infer]] = {"onnxruntime": _onnxruntime}
    if why_not_installed("openvino") is None and why_no_openvino("int8") is None:
        runtimes["openvino"] = _openvino
    return {name: _in_batches(load(model), pixels) for name, load in runtimes.items()}


def onnxruntime_logits(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (n, classes) of `pixels` (n, h, w, c) by ONNX Runtime."""
    return _in_batches(_onnxruntime(model), pixels)


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


def _onnxruntime(model: onnx.ModelProto) -> Infer:
    session = onnxruntime_session(model)
    return lambda pixels: session.run([OUTPUT_NAME], {INPUT_NAME: pixels})[0]


def _openvino(model: onnx.ModelProto) -> Infer:
    from fuseline.serve.backends.openvino import open_request

    request = open_request(serialised(model))
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=False)[0]


def _in_batches(infer: Infer, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = batch_rows(pixels, budget_pixels=_BATCH_PIXELS, most=_MAX_BATCH_ROWS)
    return np.concatenate([infer(pixels[start : start + rows]) for start in range(0, len(pixels), rows)])
