"""The loop that times calls."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

BURN_IN_S = 1.0
"""How long anything runs before it is timed."""


def timed_calls(run: Callable[[], object], seconds: float, *, burn_in_s: float = 0.0) -> tuple[float, ...]:
    """Seconds of each call of `run`, one after the other for `seconds`, at least one.

    Before come calls for `burn_in_s`, at least one, which aren't counted.
    """
    _calls(run, burn_in_s)
    return _calls(run, seconds)


def timed_calls_side_by_side(
    runs: Sequence[Callable[[], object]], seconds: float, *, burn_in_s: float = 0.0
) -> tuple[tuple[float, ...], ...]:
    """Seconds of the calls of each of `runs`, as `timed_calls`, each called by a thread of its own, all at once.

    One whose time is over is called on, uncounted, until that of all is: so none has the machine to itself.
    """
    over: set[int] = set()

    def lane(number: int) -> tuple[float, ...]:
        try:
            calls = timed_calls(runs[number], seconds, burn_in_s=burn_in_s)
        finally:
            over.add(number)
        while len(over) < len(runs):
            runs[number]()
        return calls

    with ThreadPoolExecutor(len(runs)) as threads:
        return tuple(threads.map(lane, range(len(runs))))


def _calls(run: Callable[[], object], seconds: float) -> tuple[float, ...]:
    calls: list[float] = []
    began = time.perf_counter()
    while not calls or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        run()
        calls.append(time.perf_counter() - started)
    return tuple(calls)
