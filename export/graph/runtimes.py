"""ONNX graphs in memory, run on many images by the CPU runtimes that will serve them, configured as for serving."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.graph.graph_input import rows_for
from fuseline.serve.backends.base import OpenRequest
from fuseline.serve.backends.registry import CPU_BACKENDS, backend_entry, why_not_installed
from fuseline.serve.errors import BackendError, BackendUnavailableError

# A caller may want all activations of a batch, which are then in memory at once. A CPU runs larger batches no faster.
_BATCH_PIXELS = 2 * 224 * 224
_MAX_BATCH_ROWS = 64

_CALIBRATES = "onnxruntime"


def run_batches(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    outputs: Sequence[str] | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Iterator[list[NDArray[Any]]]:
    """Yield the values `outputs` that ONNX Runtime computes from `model` for `pixels` (n, h, w, c), batch by batch.

    Without `outputs` they are the graph's own, which are the logits. A graph that takes normalised floats gets those.

    Raises:
        PackageError: the graph takes floats, and doesn't say how pixels become those.
        BackendUnavailableError: ONNX Runtime is not installed.
        BackendError: it can't load or run the graph.
    """
    if (reason := why_not_installed(_CALIBRATES)) is not None:
        raise BackendUnavailableError(f"graphs are calibrated by ONNX Runtime: {reason}")
    import onnxruntime as ort

    from fuseline.serve.backends.onnxruntime import open_session

    try:
        session = open_session(serialised(model))
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} can't load the graph to calibrate: {error}") from error
    done, input_name = 0, model.graph.input[0].name
    for batch in _batches(pixels):
        rows = rows_for(model, batch)
        try:
            values: list[NDArray[Any]] = session.run(None if outputs is None else list(outputs), {input_name: rows})
        except Exception as error:
            raise BackendError(f"ONNX Runtime {ort.__version__} failed on calibration images: {error}") from error
        yield values
        done += len(batch)
        on_progress(done / len(pixels))


def onnxruntime_logits(
    model: onnx.ModelProto, pixels: NDArray[np.uint8], on_progress: Callable[[float], None] = lambda _: None
) -> NDArray[np.float32]:
    """Return ONNX Runtime's logits (n, classes) of `pixels` (n, h, w, c); raises as `run_batches` does."""
    return np.concatenate([logits for (logits,) in run_batches(model, pixels, on_progress=on_progress)])


def int8_logits_by_runtime(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return each CPU backend's logits (n, classes) of `pixels`: ONNX Runtime's, and of those that serve INT8 here.

    Raises as `run_batches` does.
    """
    logits = {_CALIBRATES: onnxruntime_logits(model, pixels)}
    for name in CPU_BACKENDS:
        backend = backend_entry(name, "cpu").load()
        if name not in logits and backend.why_unavailable(None, OpenRequest("cpu", (), "int8")) is None:
            run = backend.graph_runner(serialised(model))
            logits[name] = np.concatenate([run(rows_for(model, batch)) for batch in _batches(pixels)])
    return logits


def serialised(model: onnx.ModelProto) -> bytes:
    """Return the bytes of `model`, the same for the same graph."""
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def batch_rows(pixels: NDArray[Any], *, budget_pixels: int, most: int) -> int:
    """Return how many of `pixels` (n, height, width, channels) to run at a time: 1 to `most`, within `budget_pixels`.

    Activations then take about the same memory whatever the image size.
    """
    height, width = map(int, pixels.shape[1:3])
    return max(1, min(most, budget_pixels // (height * width)))


def _batches(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    rows = batch_rows(pixels, budget_pixels=_BATCH_PIXELS, most=_MAX_BATCH_ROWS)
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]
