"""ONNX Runtime sessions with fixed memory for each batch size, which on a GPU is what a CUDA graph needs.

A session that is run plainly on a GPU plans its convolutions anew whenever the batch size differs from the call before:
130 to 1070 ms on an H100 (docs/gpu.md). A captured graph is replayed as it is, whatever ran in between.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer
from fuseline.serve.batching.call_thread import CallThread
from fuseline.serve.input_format import INPUT_FORMATS

_DTYPE_OF = {f"tensor({row.onnx_type.lower()})": np.dtype(row.dtype) for row in INPUT_FORMATS.values()}
"""Type of an input as ONNX Runtime names it, to numpy's."""


class BoundBatch:
    """Fixed memory on `device` (`cuda` or `cpu`) for a batch of `rows`, through which `session` is run.

    A session opened with CUDA graphs runs plainly once, captures a graph in the second run, and replays it from then
    on. It keeps graphs for each thread apart, so one thread makes all runs; any thread may copy meanwhile.
    """

    def __init__(
        self, session: Any, *, graph_id: int, rows: int, row_shape: tuple[int, ...], classes: int, device: str
    ) -> None:
        """Allocate the memory; `graph_id`, 1 or more, is this batch's own in the session.

        Raises whatever ONNX Runtime raises when the device has no memory left.
        """
        import onnxruntime as ort

        self._session = session
        dtype = input_dtype(session)
        self._pixels = ort.OrtValue.ortvalue_from_shape_and_type((rows, *row_shape), dtype.type, device, 0)
        self._logits = ort.OrtValue.ortvalue_from_shape_and_type((rows, classes), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._pixels)
        self._binding.bind_ortvalue_output(session.get_outputs()[0].name, self._logits)
        self._options = ort.RunOptions()
        # Id of the graph that a run captures or replays; -1 would capture none, and 0 is that of runs without an id.
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def put(self, pixels: NDArray[Any]) -> None:
        """Copy `pixels` (rows, *row_shape), of the graph's type, to the device; return when they are there."""
        self._pixels.update_inplace(np.ascontiguousarray(pixels))

    def run(self) -> None:
        """Compute the logits of the pixels that were put last; return when they are there."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the last run's logits (rows, classes), float32."""
        return np.array(self._logits.numpy())


class BoundSession:
    """`session` with lanes, each a `BoundBatch` for every bucket; a thread of its own makes all runs.

    The copies in and out are made by the threads that call. Both are `cudaMemcpy` on the default stream and return when
    they are done; the session's stream doesn't synchronise with that one, so a lane copies while another's batch runs.

    Each lane costs the pixels and logits of all buckets on the device, and a CUDA graph for each. Weights and
    activations are there once: the runs follow each other on one stream.
    """

    def __init__(
        self, session: Any, *, buckets: Sequence[int], row_shape: tuple[int, ...], classes: int, device: str
    ) -> None:
        """Open the lane of `infer`. Raises whatever ONNX Runtime raises."""
        self._buckets = buckets
        self._row_shape = row_shape
        self._row_dtype = input_dtype(session)
        self._new_batch = partial(BoundBatch, session, row_shape=row_shape, classes=classes, device=device)
        # A graph can't be captured anew under an id, so those of a lane that failed to open are not used again.
        self._graph_ids = itertools.count(1)
        self._lanes: list[dict[int, BoundBatch]] = []
        self._thread = CallThread("onnxruntime-cuda")
        try:
            self.open_lanes(1)
        except BaseException:
            self.close()
            raise

    def infer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (rows, classes) of `pixels`, whose rows are one of the buckets.

        Raises whatever ONNX Runtime raises.
        """
        return self._compute(self._lanes[0], pixels)

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        """See `fuseline.serve.backends.base.Backend.open_lanes`; the first lane is that of `infer`.

        No batch may be under way: ONNX Runtime captures graphs in CUDA's global mode, in which another thread's copy
        fails. Lanes stay open: a later call adds those that are missing, all or none. Raises whatever ONNX Runtime
        raises.
        """

        def add() -> None:
            self._lanes += [self._new_lane() for _ in range(count - len(self._lanes))]

        self._call(add)
        return tuple(partial(self._compute, lane) for lane in self._lanes[:count])

    def close(self) -> None:
        """Release the memory, after the calls that are under way. Calling it again does nothing."""

        def release() -> None:
            for lane in self._lanes:
                lane.clear()

        # The graphs belong to the thread, so it releases them.
        self._thread.submit(release)
        self._thread.end()
        self._thread.join()

    def _new_lane(self) -> dict[int, BoundBatch]:
        """Return a batch for each bucket, run until its graph is captured."""
        lane: dict[int, BoundBatch] = {}
        for rows in self._buckets:
            batch = self._new_batch(rows=rows, graph_id=next(self._graph_ids))
            batch.put(np.zeros((rows, *self._row_shape), self._row_dtype))
            batch.run()
            batch.run()
            lane[rows] = batch
        return lane

    def _compute(self, lane: dict[int, BoundBatch], pixels: NDArray[Any]) -> NDArray[np.float32]:
        batch = lane[len(pixels)]
        batch.put(pixels)
        self._call(batch.run)
        return batch.logits()

    def _call(self, call: Callable[[], None]) -> None:
        """Have the thread make `call`; raise what it raises."""
        future: Future[None] = Future()

        def settle() -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001
                future.set_exception(error)
            else:
                future.set_result(None)

        self._thread.submit(settle)
        future.result()


def input_dtype(session: Any) -> np.dtype[Any]:
    """Return the type of the elements that the graph of `session` takes."""
    return _DTYPE_OF[session.get_inputs()[0].type]
