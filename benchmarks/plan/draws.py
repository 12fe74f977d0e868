"""Draws a batch's seconds from those that were measured."""

import numpy as np

from fuseline.benchmarks.plan.profile import BucketSeconds

BLOCK = 16
"""Number of neighbours among the samples that are drawn together: a machine that is slow for a while is slow for some
batches in a row, which makes queues longer than as many slow batches apart from each other (H. R. Künsch, "The
jackknife and the bootstrap for general stationary observations", Annals of Statistics 17(3), 1989)."""

_AT_A_TIME = 8


class Draws:
    """Seconds of batches of one bucket: blocks of the samples, each from a random one on."""

    __slots__ = ("_drawn", "_random", "_samples")

    def __init__(self, bucket: BucketSeconds, random: np.random.Generator) -> None:
        self._samples = np.array(bucket.seconds)
        self._random = random
        self._drawn: list[float] = []

    def next(self) -> float:
        """Return the seconds of one more batch."""
        if not self._drawn:
            if len(self._samples) == 1:
                return float(self._samples[0])
            count = len(self._samples)
            starts = self._random.integers(0, count, (_AT_A_TIME, 1))
            # What is drawn last is handed out first.
            self._drawn = self._samples[(starts - np.arange(BLOCK)) % count].ravel().tolist()
        return self._drawn.pop()
