"""Calibrators: from an activation's histogram to the range that INT8 keeps; values beyond it are clipped.

A wide range rounds every value more coarsely, a narrow one clips the large ones. As nobody knows beforehand which harms
a network less, the three customary calibrators are compared (Wu et al. 2020, "Integer Quantization for Deep Learning
Inference", section 5.1). ONNX Runtime's own calibrators keep every activation of every image in memory, and its entropy
calibrator has no more bins than levels to choose a threshold from; these share one histogram.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.export.int8.histograms import BINS, Histogram

PERCENTILE = 99.99
"""Percentage of an activation's magnitudes within the range."""
UNSIGNED_LEVELS = 256
SIGNED_LEVELS = 128
"""Number of levels of a magnitude; a signed activation spends one bit on its sign."""
_CANDIDATES = 128
"""Number of thresholds that the entropy calibrator tries."""


@dataclass(frozen=True, slots=True)
class Range:
    """The range of an activation's values that INT8 keeps; it contains 0."""

    low: float
    high: float


Calibrator = Callable[[Histogram], Range]


def min_max(histogram: Histogram) -> Range:
    """Return the range from the smallest value seen to the largest, which clips nothing."""
    return _clipped(histogram, histogram.largest)


def percentile(histogram: Histogram) -> Range:
    """Return the range up to the magnitude that `PERCENTILE` percent of the values don't exceed."""
    seen = np.cumsum(histogram.counts)
    last = int(np.searchsorted(seen, seen[-1] * (PERCENTILE / 100)))
    return _clipped(histogram, _upper_edge(histogram, last))


def entropy(histogram: Histogram) -> Range:
    """Return the range up to the magnitude that loses least information, by the Kullback-Leibler divergence.

    The method is that of Migacz 2017, "8-bit Inference with TensorRT".
    """
    levels = SIGNED_LEVELS if histogram.lowest < 0 else UNSIGNED_LEVELS
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    counts = histogram.counts.astype(np.float64)
    # A ReLU's zeros are exact at any threshold; if they counted, they would outweigh all else.
    counts[0] = counts[1]
    if used <= levels or not counts[:used].any():
        return _clipped(histogram, histogram.largest)
    ends = np.unique(np.geomspace(levels, used, _CANDIDATES).round().astype(int))
    losses = [_divergence(counts[:used], end, levels) for end in ends]
    return _clipped(histogram, _upper_edge(histogram, int(ends[int(np.argmin(losses))]) - 1))


CALIBRATORS: Mapping[str, Calibrator] = {"entropy": entropy, "percentile": percentile, "min-max": min_max}
"""Calibrators by name; of equally good ones the first is preferred."""


def _clipped(histogram: Histogram, magnitude: float) -> Range:
    return Range(min(max(histogram.lowest, -magnitude), 0.0), max(min(histogram.highest, magnitude), 0.0))


def _upper_edge(histogram: Histogram, index: int) -> float:
    return histogram.limit * (index + 1) / BINS


def _divergence(counts: NDArray[np.float64], end: int, levels: int) -> float:
    """Return the KL divergence of `counts`, clipped to its first `end` bins, from the same in `levels` levels."""
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    level_of_bin = np.arange(end) * levels // end
    occupied = counts[:end] > 0
    total = np.bincount(level_of_bin, weights=counts[:end], minlength=levels)
    bins = np.bincount(level_of_bin, weights=occupied, minlength=levels)
    # A level's count spreads evenly over those of its bins that any value is in.
    spread = np.where(occupied, (total / np.maximum(bins, 1))[level_of_bin], 0.0)
    if spread.sum() == 0:
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    # A bin that holds only clipped values has no level of its own; a tiny probability keeps the logarithm finite.
    q = np.maximum(q, np.finfo(np.float32).tiny)
    nonzero = p > 0
    return float((p[nonzero] * np.log(p[nonzero] / q[nonzero])).sum())
