"""How many rows come in a second, of late."""

import math

RATE_SECONDS = 0.5
"""Age at which a count of rows weighs a third in the rate at which rows come."""


class RowRate:
    """The rate at which a count of rows grows."""

    __slots__ = ("_counted", "_from", "per_s")

    def __init__(self) -> None:
        self.per_s = 0.0
        """Number of rows in a second."""
        self._from: float | None = None
        self._counted = 0

    def learn(self, count: int, now: float) -> None:
        """Learn from the count at the time `now`; it never falls."""
        if self._from is None:
            self._from = now
        elif (elapsed := now - self._from) > 0:
            weight = 1 - math.exp(-elapsed / RATE_SECONDS)
            self.per_s += weight * ((count - self._counted) / elapsed - self.per_s)
            self._from, self._counted = now, count
