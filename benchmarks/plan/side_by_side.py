"""Simulations that don't depend on each other, one on each core."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from fuseline.serve.process.cpu import usable_cpus

T = TypeVar("T")

Run = Callable[[Sequence[Callable[[], T]]], list[T]]
"""Makes calls, in whatever order, and returns what each returned; raises what the first of them raised that failed."""


def one_after_another(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make `calls` in this process."""
    return [call() for call in calls]


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make `calls`, which can be pickled, in as many processes as there are cores to use, and calls."""
    processes = min(usable_cpus(), len(calls))
    if processes <= 1:
        return one_after_another(calls)
    # Not forked: gRPC and OpenVINO may have threads here.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
