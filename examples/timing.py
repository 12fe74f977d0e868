"""Contenders that classify the same images, timed in turns so that a slow moment of the machine hits all of them."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROC_STAT = Path("/proc/stat")

Classify = Callable[[Sequence[int]], NDArray[np.int64]]
"""Positions of held-out images to their top-1 classes."""


@dataclass
class Contender:
    """One way to classify, and what was measured of it so far."""

    name: str
    classify_one: Classify | None
    """Called with a single position; timed for latency. None: not timed."""
    classify_many: Classify
    """Called with `many` positions; timed for throughput."""
    many: int
    latencies_ms: list[float] = field(default_factory=list)
    """Median of each round."""
    images_per_s: list[float] = field(default_factory=list)
    """Mean of each round."""


def time_in_turns(
    contenders: Sequence[Contender],
    expected: NDArray[np.int64],
    *,
    rounds: int,
    stretch_s: float,
    on_stretch_done: Callable[[], None],
) -> None:
    """Measure each contender `rounds` times, for latency and throughput, `stretch_s` seconds each.

    Every answer that is timed is held against `expected`, the top-1 class of each image.

    Raises:
        RuntimeError: an answer was another one.
    """
    for _ in range(rounds):
        for contender in contenders:
            if contender.classify_one is not None:
                seconds, _ = _stretch(contender.name, contender.classify_one, 1, expected, stretch_s)
                contender.latencies_ms.append(1000 * float(np.median(seconds)))
                on_stretch_done()
            seconds, images = _stretch(contender.name, contender.classify_many, contender.many, expected, stretch_s)
            contender.images_per_s.append(images / sum(seconds))
            on_stretch_done()


def busy_cores(sample_s: float) -> float | None:
    """Sleep for `sample_s` seconds; return how many cores were busy on average meanwhile, None where Linux isn't."""
    if not PROC_STAT.exists():
        return None
    busy_before_s, started = _busy_s(), time.perf_counter()
    time.sleep(sample_s)
    return (_busy_s() - busy_before_s) / (time.perf_counter() - started)


def _stretch(
    name: str, classify: Classify, rows: int, expected: NDArray[np.int64], stretch_s: float
) -> tuple[list[float], int]:
    """Seconds of each call, and images in all."""
    seconds: list[float] = []
    answers: list[tuple[list[int], NDArray[np.int64]]] = []
    end = time.perf_counter() + stretch_s
    first = 0
    while time.perf_counter() < end:
        positions = [(first + row) % len(expected) for row in range(rows)]
        started = time.perf_counter()
        top1 = classify(positions)
        seconds.append(time.perf_counter() - started)
        answers.append((positions, top1))
        first += rows
    for positions, top1 in answers:
        if not np.array_equal(top1, expected[positions]):
            raise RuntimeError(f"{name} answered {top1} for images {positions}; eager answered {expected[positions]}")
    return seconds, rows * len(seconds)


def _busy_s() -> float:
    """Seconds that all cores together were not idle since the machine started: first line of /proc/stat (proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, PROC_STAT.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
