"""The loop that times calls."""

import time
from collections.abc import Callable

BURN_IN_S = 1.0
"""How long anything runs before it is timed."""


def timed_calls(run: Callable[[], object], seconds: float, *, burn_in_s: float = 0.0) -> tuple[float, ...]:
    """Seconds of each call of `run`, one after the other for `seconds`, at least one.

    Before come calls for `burn_in_s`, at least one, which aren't counted.
    """
    _calls(run, burn_in_s)
    return _calls(run, seconds)


def _calls(run: Callable[[], object], seconds: float) -> tuple[float, ...]:
    calls: list[float] = []
    began = time.perf_counter()
    while not calls or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        run()
        calls.append(time.perf_counter() - started)
    return tuple(calls)
