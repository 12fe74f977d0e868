"""The measured time of a batch in each bucket."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

SPEED_RATE = 0.2
"""Weight of the newest batch in the device's speed, which all buckets share: other work on the machine slows each."""

BUCKET_RATE = 0.05
"""Weight of the newest batch in how its bucket compares with the others."""

RECENT_SECONDS = 0.3
"""Age at which a measurement weighs a third: the first batch after a pause counts for nearly everything."""

LARGEST_STEP = math.log(2)
"""Largest step, as a logarithm, that one batch among others moves the time by: a hiccup of the machine that takes ten
times as long is no sign of ten times the load."""


class BatchProfile:
    """Seconds of a batch by bucket: the bucket's time relative to the others, times the device's present slowness.

    An unmeasured bucket counts as the next smaller measured one, or as 0 seconds: this errs towards admitting.
    """

    def __init__(self, buckets: Sequence[int], measured: Mapping[int, float], now: float) -> None:
        """Begin with `buckets`, ascending, in rows, and the `measured` seconds of some of them."""
        self._buckets = buckets
        self._relative = {bucket: seconds for bucket, seconds in measured.items() if seconds > 0}
        self._speed = 1.0
        self.table = self._filled()
        """Seconds of a batch in each bucket."""
        self.learned_at = now
        """Time of the last measurement."""

    def learn(self, bucket: int, seconds: float, now: float) -> None:
        """Learn from one more measured batch, which ended at `now`."""
        # A clock that is too coarse for the batch tells 0.
        seconds = max(seconds, 1e-6)
        forgotten = 1 - math.exp(-max(0.0, now - seconds - self.learned_at) / RECENT_SECONDS)
        self.learned_at = now
        if (known := self._relative.get(bucket)) is None:
            self._relative[bucket] = seconds / self._speed
        else:
            step = math.log(seconds / (known * self._speed))
            if forgotten < 0.5:
                step = min(max(step, -LARGEST_STEP), LARGEST_STEP)
            self._relative[bucket] = known * math.exp(BUCKET_RATE * step)
            self._speed *= math.exp(max(SPEED_RATE, forgotten) * step * (1 - BUCKET_RATE))
        self.table = self._filled()

    def is_measured(self, bucket: int) -> bool:
        """Return whether a batch of this very bucket was ever measured."""
        return bucket in self._relative

    def batch_seconds(self, rows: int) -> float:
        """Return the seconds of a batch of `rows` in its bucket; `rows` is at most the largest bucket."""
        return self.table[bisect_left(self._buckets, rows)]

    def _filled(self) -> list[float]:
        table, last = [], 0.0
        for bucket in self._buckets:
            if (relative := self._relative.get(bucket)) is not None:
                last = relative * self._speed
            table.append(last)
        return table
