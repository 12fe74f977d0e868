"""Latencies as an HDR histogram (http://hdrhistogram.org): three digits from a microsecond to an hour."""

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from numpy.typing import NDArray

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
_LONGEST_US = 3_600_000_000
_DIGITS = 3


def histogram_of(latency_s: NDArray[np.float64]) -> HdrHistogram:
    """Histogram of `latency_s` in whole microseconds, each within 0.1 %; above an hour they count as an hour."""
    histogram = HdrHistogram(1, _LONGEST_US, _DIGITS)
    microseconds = np.clip(np.rint(latency_s * 1e6), 0, _LONGEST_US).astype(np.int64)
    for value, count in zip(*np.unique(microseconds, return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return histogram


def percentiles_ms(histogram: HdrHistogram) -> dict[str, float]:
    """p50, p90, p99, p999 (99.9) and max, each the upper end of its bin, in milliseconds."""
    found = histogram.get_percentile_to_value_dict(list(PERCENTILES.values()))
    return {name: found[percentile] / 1e3 for name, percentile in PERCENTILES.items()}


def encoded(histogram: HdrHistogram) -> str:
    """The histogram, in microseconds, as text that every HdrHistogram library decodes (V2, compressed, base64)."""
    return bytes(histogram.encode()).decode("ascii")


def decoded(text: str) -> HdrHistogram:
    """The histogram that `encoded` wrote."""
    return HdrHistogram.decode(text)
