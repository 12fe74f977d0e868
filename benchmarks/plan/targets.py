"""What is asked of a fleet: at each of some percentiles, a latency."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


@dataclass(frozen=True, slots=True)
class Targets:
    """Latencies within which so many of all requests are to be answered; one that isn't answered is never within."""

    limits_ms: dict[str, float]
    """A name of `PERCENTILES` to milliseconds."""

    @property
    def within_ms(self) -> float:
        """What an answer has to keep to be a good one: the latency at the highest percentile."""
        return self.limits_ms[max(self.limits_ms, key=PERCENTILES.__getitem__)]

    @property
    def least_requests(self) -> int:
        """Number of requests by which the highest percentile can be told: some dozens may be late."""
        late = 1 - PERCENTILES[max(self.limits_ms, key=PERCENTILES.__getitem__)] / 100
        return int(np.clip(200 / late, 10_000, 40_000))

    def late_ratio(self, latency_s: NDArray[np.float64]) -> float:
        """Return how many requests of (n,) are late, as a multiple of how many may be: the largest of the targets'.

        At most 1: they are met. NaN stands for no answer.
        """
        return max(
            float(np.count_nonzero(~(latency_s * 1000 <= limit)) / len(latency_s) / (1 - PERCENTILES[name] / 100))
            for name, limit in self.limits_ms.items()
        )

    def tightness(self, latency_s: NDArray[np.float64]) -> float:
        """Return the latency at a percentile as a multiple of its limit: the largest of the targets'."""
        return max(quantile(latency_s, PERCENTILES[name]) * 1000 / limit for name, limit in self.limits_ms.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {limit:g} ms" for name, limit in self.limits_ms.items())


def quantile(latency_s: NDArray[np.float64], percent: float) -> float:
    """Return the seconds within which `percent` of (n,) requests were answered; infinite where fewer ever were."""
    return float(np.quantile(np.nan_to_num(latency_s, nan=np.inf), percent / 100, method="inverted_cdf"))
