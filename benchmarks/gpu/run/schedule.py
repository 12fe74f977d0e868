"""How the minutes of a run are shared out over its steps."""

from collections.abc import Sequence

LEAST_S = 20.0
"""Least time in which a step comes to anything: Python, PyTorch and a runtime have to be loaded."""


def limit_s(weights: Sequence[float], left_s: float) -> float:
    """Seconds for the first of the steps that are left, whose `weights` are their shares of the whole run.

    What earlier steps didn't use goes to all that come, in proportion. No step gets less than `LEAST_S` while that much
    is left, so that a short run drops its last steps instead of cutting every one.
    """
    if left_s <= 0:
        return 0.0
    share = left_s * weights[0] / sum(weights)
    return min(left_s, max(share, LEAST_S))
