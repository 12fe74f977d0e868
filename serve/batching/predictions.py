"""What is predicted for answers, how far such predictions have missed, and the margin that follows from it."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

KEPT_MISSES = 200
"""Number of batches from which a margin is learned: it is the worst miss among them, which one batch in 200 exceeds."""

LARGEST_MARGIN_SHARE = 0.4
"""Largest learned margin, as a share of the predicted time: refusing nearly all requests doesn't mend a machine that
misses by more."""

NETWORK_SECONDS, NETWORK_SHARE = 0.002, 0.05
"""Part of every margin for the way to the caller, which nothing here measures; the share of the predicted time that it
is at most."""

HORIZONS = 24
"""Number of classes of `_horizon`; the last one begins at 70 minutes."""


class PredictedAnswer(NamedTuple):
    """Prediction for the answer to a request, made when the request was admitted."""

    at: float
    """Time of the answer on the batcher's clock."""
    seconds: float
    """Seconds from admission to `at`, decoding of the request's images included."""
    is_probe: bool = False
    """Whether the request was admitted although it should be late, to see whether that is so."""


UNPREDICTED = PredictedAnswer(0.0, 0.0)
"""Stands for the prediction of a request that was admitted without one."""


class Margins:
    """Learns from every batch how much later than predicted an answer may come, by how far ahead it was predicted."""

    def __init__(self) -> None:
        self.learned = [0.0] * HORIZONS
        """Learned margin in seconds for each class of `_horizon`."""
        self._misses: dict[int, deque[float]] = {}

    def of(self, seconds: float) -> float:
        """Return how many seconds later an answer may well come than predicted `seconds` from now."""
        learned = min(self.learned[_horizon(seconds)], LARGEST_MARGIN_SHARE * seconds)
        return learned + min(NETWORK_SECONDS, NETWORK_SHARE * seconds)

    def learn(
        self, answered: Sequence[PredictedAnswer], now: float, late: Sequence[tuple[PredictedAnswer, float]]
    ) -> None:
        """Learn from the predictions for the requests that one batch answered, which were handed out at `now`.

        `late` has the predictions for requests that were dropped meanwhile, with when they would have been answered.
        """
        worst: dict[int, float] = {}
        for at, seconds, _ in answered:
            # `_horizon`, without the call: this is done for every request.
            horizon = int(1000 * seconds).bit_length()
            if now - at > worst.get(horizon, -math.inf):
                worst[horizon] = now - at
        for predicted, finish in late:
            horizon = _horizon(predicted.seconds)
            worst[horizon] = max(finish - predicted.at, worst.get(horizon, -math.inf))
        for unbounded, miss in worst.items():
            horizon = min(unbounded, HORIZONS - 1)
            kept = self._misses.setdefault(horizon, deque(maxlen=KEPT_MISSES))
            kept.append(miss)
            self.learned[horizon] = max(0.0, *kept)


def _horizon(seconds: float) -> int:
    """Return the class of predictions `seconds` ahead: each class reaches twice as far ahead as the one before it."""
    return min(int(1000 * seconds).bit_length(), HORIZONS - 1)
