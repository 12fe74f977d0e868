"""ONNX Runtime sessions with fixed memory for each batch size, which on a GPU is what a CUDA graph needs.

A session that is run plainly on a GPU plans its convolutions anew whenever the batch size differs from the call before:
130 to 1070 ms on an H100 (docs/gpu.md). A captured graph is replayed as it is, whatever ran in between.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.batching.call_thread import CallThread
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

_Answer = TypeVar("_Answer")


class BoundBatch:
    """Fixed memory on `device` (`cuda` or `cpu`) for a batch of `rows`, through which `session` is run.

    A session opened with CUDA graphs runs plainly once, captures a graph for `rows` in the second run, and replays it
    from then on. It keeps graphs for each thread apart, so one thread makes all runs.
    """

    def __init__(self, session: Any, *, rows: int, row_shape: tuple[int, ...], classes: int, device: str) -> None:
        """Allocate the memory. Raises whatever ONNX Runtime raises when the device has none left."""
        import onnxruntime as ort

        self._session = session
        self._pixels = ort.OrtValue.ortvalue_from_shape_and_type((rows, *row_shape), np.uint8, device, 0)
        self._logits = ort.OrtValue.ortvalue_from_shape_and_type((rows, classes), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._pixels)
        self._binding.bind_ortvalue_output(OUTPUT_NAME, self._logits)
        self._options = ort.RunOptions()
        # Id of the graph that a run captures or replays; -1 would capture none, and 0 is that of runs without an id.
        self._options.add_run_config_entry("gpu_graph_id", str(rows))

    def put(self, pixels: NDArray[np.uint8]) -> None:
        """Copy `pixels` (rows, height, width, channels), uint8, to the device."""
        self._pixels.update_inplace(np.ascontiguousarray(pixels))

    def run(self) -> None:
        """Compute the logits of the pixels that were put last; return when they are there."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the last run's logits (rows, classes), float32."""
        return np.array(self._logits.numpy())


class BoundSession:
    """`session` with a `BoundBatch` for each of `buckets`, run by a thread of its own, so that any thread may call."""

    def __init__(
        self, session: Any, *, buckets: Sequence[int], row_shape: tuple[int, ...], classes: int, device: str
    ) -> None:
        """Run every bucket until its graph is captured. Raises whatever ONNX Runtime raises."""
        self._thread = CallThread("onnxruntime-cuda")
        self._batches: dict[int, BoundBatch] = {}

        def capture() -> None:
            for rows in buckets:
                batch = BoundBatch(session, rows=rows, row_shape=row_shape, classes=classes, device=device)
                batch.put(np.zeros((rows, *row_shape), np.uint8))
                batch.run()
                batch.run()
                self._batches[rows] = batch

        try:
            self._call(capture)
        except BaseException:
            self.close()
            raise

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits (rows, classes) of `pixels`, whose rows are one of the buckets.

        Raises whatever ONNX Runtime raises.
        """
        batch = self._batches[len(pixels)]

        def replay() -> NDArray[np.float32]:
            batch.put(pixels)
            batch.run()
            return batch.logits()

        return self._call(replay)

    def close(self) -> None:
        """Release the memory, after the calls that are under way. Calling it again does nothing."""
        # The graphs belong to the thread, so it releases them.
        self._thread.submit(self._batches.clear)
        self._thread.end()
        self._thread.join()

    def _call(self, call: Callable[[], _Answer]) -> _Answer:
        future: Future[_Answer] = Future()

        def settle() -> None:
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001
                future.set_exception(error)

        self._thread.submit(settle)
        return future.result()
