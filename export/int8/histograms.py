"""Histograms of the magnitudes of activations, collected in one pass over the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference

from fuseline.export.graph.runtimes import run_batches
from fuseline.serve.errors import VerificationError

BINS = 16384


@dataclass(slots=True)
class Histogram:
    """The magnitudes of an activation's values over all images that were seen."""

    counts: NDArray[np.int64]
    """Number of values v with i <= |v| / `limit` * BINS < i + 1, (BINS,)."""
    limit: float
    """Upper edge of the last bin, at most four times `largest`."""
    lowest: float
    highest: float
    """`lowest` and `highest` are the smallest and the largest value."""

    @property
    def largest(self) -> float:
        """Largest magnitude of a value."""
        return max(-self.lowest, self.highest)


def activation_histograms(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    pixels: NDArray[np.uint8],
    on_progress: Callable[[float], None],
) -> dict[str, Histogram]:
    """Run `model` in FP32 on `pixels` (n, h, w, c) and count the magnitudes of its activations `tensors`.

    The same input gives the same counts. Memory is bounded, as no activation is kept.

    Raises:
        VerificationError: an activation, which is named, is NaN or infinite.
    """
    histograms = {name: Histogram(np.zeros(BINS, np.int64), 0.0, np.inf, -np.inf) for name in tensors}
    for values in run_batches(_with_outputs(model, tensors), pixels, tensors, on_progress):
        for name, activation in zip(tensors, values, strict=True):
            _count(histograms[name], activation, name)
    return histograms


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    inferred = shape_inference.infer_shapes(model)
    graph = inferred.graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    del graph.output[:]
    graph.output.extend(values[name] for name in tensors)
    return inferred


def _count(histogram: Histogram, activation: NDArray[np.float32], name: str) -> None:
    lowest, highest = float(activation.min()), float(activation.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise VerificationError(f"activation {name} is NaN or infinite in FP32, so it has no range to quantise")
    histogram.lowest, histogram.highest = min(histogram.lowest, lowest), max(histogram.highest, highest)
    magnitudes = np.abs(activation).ravel()
    largest = max(-lowest, highest)
    if histogram.limit == 0:
        # Later images have larger values; twice the room spares most of the merging.
        histogram.limit = 2 * largest
    if largest == 0:
        histogram.counts[0] += magnitudes.size
        return
    while largest >= histogram.limit:
        # Pairs of bins are merged, so that no value needs to be counted again.
        merged = histogram.counts.reshape(-1, 2).sum(axis=1)
        histogram.counts = np.concatenate([merged, np.zeros_like(merged)])
        histogram.limit *= 2
    bins = (magnitudes * np.float32(BINS / histogram.limit)).astype(np.int32)
    # A quotient that float32 rounds up to BINS belongs in the last bin.
    np.minimum(bins, BINS - 1, out=bins)
    histogram.counts += np.bincount(bins, minlength=BINS)
