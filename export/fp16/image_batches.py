"""Running an ONNX graph on many images: ONNX Runtime on the CPU, in batches of bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.batch_rows import batch_rows
from fuseline.serve.backends import why_not_installed
from fuseline.serve.errors import BackendError, BackendUnavailableError
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

_BATCH_PIXELS = 4 * 224 * 224
_MAX_BATCH_ROWS = 32


def run_batches(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    outputs: Sequence[str] = (OUTPUT_NAME,),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[list[NDArray[Any]]]:
    """The values `outputs` of `model` for `pixels` (n, h, w, c), batch by batch.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        BackendError: it can't load or run the graph.
    """
    # That of `fuseline.serve.backends`, which keeps the runtime from reporting to its maker, has been imported first.
    if (reason := why_not_installed("onnxruntime")) is not None:
        raise BackendUnavailableError(f"an FP16 graph is calibrated by ONNX Runtime: {reason}")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    # Spinning workers make each other wait where the machine is busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} can't load the graph to calibrate: {error}") from error
    rows = batch_rows(pixels, budget_pixels=_BATCH_PIXELS, most=_MAX_BATCH_ROWS)
    for start in range(0, len(pixels), rows):
        try:
            values: list[NDArray[Any]] = session.run(list(outputs), {INPUT_NAME: pixels[start : start + rows]})
        except Exception as error:
            raise BackendError(f"ONNX Runtime {ort.__version__} failed on calibration images: {error}") from error
        yield values
        if on_progress is not None:
            on_progress(min(1.0, (start + rows) / len(pixels)))


def logits_of(
    model: onnx.ModelProto, pixels: NDArray[np.uint8], on_progress: Callable[[float], None] | None = None
) -> NDArray[np.float32]:
    """Logits (n, classes) of `model` for `pixels` (n, h, w, c); raises as `run_batches` does."""
    return np.concatenate([logits for (logits,) in run_batches(model, pixels, on_progress=on_progress)])
