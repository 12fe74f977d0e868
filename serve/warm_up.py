"""Runs a backend's first batches before it serves: measures each bucket, and checks that its answers are logits."""

import math
import time

import numpy as np

from fuseline.serve.backends.base import Backend
from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import ModelPackage

_MEASURE_RUNS = 3
_MEASURE_BUDGET_S = 0.05


def warm_up(backend: Backend, package: ModelPackage) -> dict[int, float]:
    """Run every bucket of `backend` on noise; return the measured seconds of one call, by bucket.

    The smallest bucket runs once before it is measured, since the first call pays for the runtime's own set-up. Buckets
    that take less than 50 ms are measured up to three times, and the fastest run counts.

    Raises:
        PackageError: the logits are not (rows, classes), or not finite.
        BackendError: the runtime failed.
    """
    noise = np.random.default_rng(0)
    seconds_per_bucket: dict[int, float] = {}
    for bucket in backend.buckets:
        pixels = noise.integers(0, 256, (bucket, *package.manifest.input.row_shape), dtype=np.uint8)
        if not seconds_per_bucket:
            backend.infer(pixels)
        spent_s, best_s = 0.0, math.inf
        for _ in range(_MEASURE_RUNS):
            started = time.monotonic()
            logits = backend.infer(pixels)
            took_s = time.monotonic() - started
            best_s = min(best_s, took_s)
            spent_s += took_s
            if spent_s >= _MEASURE_BUDGET_S:
                break
        expected = (bucket, package.manifest.classes)
        if logits.shape != expected:
            raise PackageError(
                f"{package.folder}: the model answers {bucket} images with logits of shape {logits.shape}, its "
                f"manifest's labels promise {expected}; export it again"
            )
        if not np.isfinite(logits).all():
            raise PackageError(
                f"{package.folder}: the model in {backend.precision} answers random pixels with logits that are not "
                "finite; try --precision fp32, or export it again"
            )
        seconds_per_bucket[bucket] = best_s
    return seconds_per_bucket
