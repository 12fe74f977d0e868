"""How long a batch takes, as far as has been measured."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

LEARNING_RATE = 0.2
"""Weight of the newest batch in the moving average of a bucket's seconds."""


class BatchProfile:
    """Seconds by bucket, each an exponentially weighted moving average of what was measured.

    An unmeasured bucket counts as the next smaller measured one, or nothing: this errs to admit.
    """

    def __init__(self, buckets: Sequence[int], measured: Mapping[int, float], now: float) -> None:
        self._buckets = buckets
        self._measured = dict(measured)
        self.learned_at = now

    def learn(self, bucket: int, seconds: float, now: float) -> None:
        """Take in one more measured batch."""
        known = self._measured.get(bucket, seconds)
        self._measured[bucket] = known + LEARNING_RATE * (seconds - known)
        self.learned_at = now

    def seconds(self, rows: int) -> float:
        """All the batches that `rows` queued rows make."""
        full, rest = divmod(rows, self._buckets[-1])
        seconds = full * self._batch_seconds(self._buckets[-1]) if full else 0.0
        return seconds + self._batch_seconds(rest) if rest else seconds

    def _batch_seconds(self, rows: int) -> float:
        for index in range(bisect_left(self._buckets, rows), -1, -1):
            if (seconds := self._measured.get(self._buckets[index])) is not None:
                return seconds
        return 0.0
