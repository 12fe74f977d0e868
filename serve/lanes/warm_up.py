"""Runs a backend's first batches before it serves: measures each bucket, and checks that its answers are logits."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Infer, Instance
from fuseline.serve.errors import PackageError
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import ModelPackage

_MEASURE_RUNS = 3
_MEASURE_BUDGET_S = 0.05

_Result = TypeVar("_Result")


def warm_up(instances: Sequence[Instance], package: ModelPackage, *, rest: float = 0.0) -> dict[int, float]:
    """Run every bucket of `instances` on noise, side by side; return the measured seconds of one call, by bucket.

    The smallest bucket runs once before it is measured, since the first call pays for the runtime's own set-up. Buckets
    that take less than 50 ms are measured up to three times, and the fastest run counts; a run takes as long as its
    calls on average. All instances have the same buckets.

    With a `rest` they run one after another and each bucket once, because others compute meanwhile: after each run they
    have the cores for `rest` times as long.

    Raises:
        PackageError: the logits are not (rows, classes), or not finite.
        BackendError: the runtime failed.
    """
    seconds_per_bucket: dict[int, float] = {}
    infers = [instance.infer for instance in instances]
    for bucket in instances[0].buckets:
        pixels = noise(bucket, package)
        run = partial(run_resting, rest=rest) if rest else run_once
        if not seconds_per_bucket:
            run(infers, pixels)
        spent_s, best_s = 0.0, math.inf
        for _ in range(1 if rest else _MEASURE_RUNS):
            runs = run(infers, pixels)
            took_s = sum(seconds for seconds, _ in runs) / len(runs)
            best_s = min(best_s, took_s)
            spent_s += took_s
            if spent_s >= _MEASURE_BUDGET_S:
                break
        for _, logits in runs:
            _check(logits, bucket, package, instances[0].precision)
        seconds_per_bucket[bucket] = best_s
    return seconds_per_bucket


def noise(rows: int, package: ModelPackage) -> NDArray[Any]:
    """Return `rows` images of noise, as the graphs of `package` take them."""
    shape = package.manifest.input.pixel_shape
    pixels = np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)
    return row_maker(package.manifest)(pixels)


def run_once(infers: Sequence[Infer], pixels: NDArray[Any]) -> list[tuple[float, NDArray[np.float32]]]:
    """Call all of `infers` with `pixels` at the same time; return the seconds and the logits of each call."""

    def timed(infer: Infer) -> tuple[float, NDArray[np.float32]]:
        started = time.monotonic()
        logits = infer(pixels)
        return time.monotonic() - started, logits

    return side_by_side([partial(timed, infer) for infer in infers])


def run_resting(infers: Sequence[Infer], pixels: NDArray[Any], rest: float) -> list[tuple[float, NDArray[np.float32]]]:
    """As `run_once`, but one call after another, each followed by `rest` times as long without any."""
    runs = []
    for infer in infers:
        runs += run_once([infer], pixels)
        time.sleep(rest * runs[-1][0])
    return runs


def side_by_side(calls: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Make `calls` at the same time, each in a thread of its own; return their results, or raise what one raised."""
    if len(calls) == 1:
        return [calls[0]()]
    all_there = Barrier(len(calls))

    def begin(call: Callable[[], _Result]) -> _Result:
        all_there.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(begin, calls))


def _check(logits: NDArray[np.float32], bucket: int, package: ModelPackage, precision: str) -> None:
    expected = (bucket, package.manifest.classes)
    if logits.shape != expected:
        raise PackageError(
            f"{package.folder}: the model answers {bucket} images with logits of shape {logits.shape}, its "
            f"manifest's labels promise {expected}; export it again"
        )
    if not np.isfinite(logits).all():
        raise PackageError(
            f"{package.folder}: the model in {precision} answers random pixels with logits that are not "
            "finite; try --precision fp32, or export it again"
        )
