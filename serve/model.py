"""One loaded model: its package, a warmed backend and the batcher that feeds it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from fuseline.serve.backends import DEFAULT_BUCKETS, open_backend
from fuseline.serve.backends.base import Backend, BackendFacts
from fuseline.serve.batching.admission import Promise, Ready
from fuseline.serve.batching.batcher import BatchedRows, Batcher, BatchStats, Misses, Row
from fuseline.serve.cpu import usable_cpus
from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import InputSpec, Manifest, ModelPackage, load_package
from fuseline.serve.reference import check_reference
from fuseline.serve.settings import Settings, buckets_up_to

CPU_BATCH_PIXELS = 16 * 224 * 224
"""Pixels that fill a CPU's cores. Measured with ResNet-18 at 224 x 224 and 32 clients on 2 cores: batches of 8 serve
0.92 of the bare runtime's images/s, of 16 0.97, of 32 no more, and their activations take twice the memory."""

CPU_CORE_PIXELS = 2 * 224 * 224
"""Pixels of a batch for each core from which on a row takes about as long in any batch. Measured with ResNet-18 at
224 x 224: on 2 cores a row takes 0.95 to 1.15 times as long in a batch of 4 as in one of 16, alone 1.2 to 1.7 times; on
1 core 1.06 to 1.13 times as long in a batch of 2 as in one of 8."""

SMALL_BATCH_MS = 10.0
"""Batches are kept small only where a small one takes so long: a faster network costs less than a batch of its own."""

INLINE_BELOW_MS = 1.0
"""About what a busy event loop loses by handing a batch to a thread and back: a CPU's batch that takes less is computed
on the loop. Not a GPU's: while that computes, the loop's time is free for requests."""

_log = logging.getLogger(__name__)

_MEASURE_RUNS = 3
_MEASURE_BUDGET_S = 0.05


class RowBatcher(Protocol):
    """What takes requests: `fuseline.serve.batching.batcher.Batcher`, or what stands for one in another process."""

    @property
    def queued_rows(self) -> int:
        """Rows that wait for a batch."""
        ...

    @property
    def crowd(self) -> Literal["rows", "time"] | None:
        """See `Batcher.crowd`."""
        ...

    def submit(
        self, rows: Sequence[Row], *, deadline: float | None = None, promise: Promise | None = None
    ) -> asyncio.Future[BatchedRows]:
        """See `Batcher.submit`."""
        ...

    def promise(self, row_count: int, *, deadline: float | None = None, ready: Ready) -> Promise:
        """See `Batcher.promise`."""
        ...

    async def drain(self) -> None:
        """See `Batcher.drain`."""
        ...


class Model:
    """A model that is ready: every bucket has run, and the backend was held against the package's reference."""

    def __init__(
        self,
        package: ModelPackage,
        backend: BackendFacts,
        backend_reason: str,
        batcher: RowBatcher,
        close_backend: Callable[[], None] | None = None,
    ) -> None:
        """`backend_reason` tells why this backend was chosen. `close_backend` None: another process has the backend."""
        self.package = package
        self.manifest: Manifest = package.manifest
        """What the package says of itself."""
        self.name: str = package.manifest.name
        """The name under which requests find it."""
        self.row_shape = package.manifest.input.row_shape
        """(height, width, channels) of one image."""
        self.classes = package.manifest.classes
        """How many classes it tells apart."""
        self.backend = backend
        self.backend_reason = backend_reason
        self.batcher = batcher
        self._close_backend = close_backend

    async def close(self) -> None:
        """Finish what was admitted, admit nothing more, and release the backend. Calling it again does nothing."""
        await self.batcher.drain()
        if self._close_backend is not None:
            self._close_backend()


class BatchCounts(Protocol):
    """What counts batches: `fuseline.serve.metrics.metrics.Metrics`, or what stands before it."""

    def count_batch(self, model: str, stats: BatchStats) -> None:
        """Count one batch of the model of that name."""
        ...

    def count_misses(self, model: str, misses: Misses) -> None:
        """Count how the predictions for one batch came true."""
        ...


def load_model(folder: Path, settings: Settings, counts: BatchCounts) -> Model:
    """Load the package in `folder`, open its backend, warm every bucket and hold it against the package's reference.

    Blocks meanwhile. `counts` is told of every batch. What the package assumes, and nothing settled, is logged.

    Raises:
        PackageError: `folder` is no package, or its model doesn't do what the manifest says.
        BackendUnavailableError: the asked-for backend can't run here.
        VerificationError: its answers on the package's reference images are not PyTorch's.
    """
    package = load_package(folder)
    backend, reason = open_backend(
        package,
        backend=settings.backend,
        precision=settings.precision,
        buckets=buckets_up_to(settings.max_batch) if settings.max_batch else DEFAULT_BUCKETS,
        threads=settings.threads,
        engine_cache=settings.engine_cache_folder,
    )
    on_cpu = backend.device == "CPU"
    if on_cpu:
        backend.buckets = cpu_buckets(settings.max_batch or cpu_max_batch(package.manifest.input))
    try:
        seconds_per_bucket = warm_up(backend, package)
        check_reference(backend, package)
    except BaseException:
        backend.close()
        raise
    name = package.manifest.name
    for assumption in package.manifest.open_assumptions:
        _log.warning("%s: %s", name, assumption.line)
    unsaturated_rows = None
    # Who sets a delay asks for fuller batches.
    if on_cpu and not settings.max_delay_ms:
        unsaturated_rows = cpu_unsaturated_rows(package.manifest.input, settings.threads, seconds_per_bucket)
    batcher = Batcher(
        backend.infer,
        row_shape=package.manifest.input.row_shape,
        buckets=backend.buckets,
        max_queue_rows=settings.max_queue_rows,
        max_queue_ms=settings.max_queue_ms,
        max_delay_ms=settings.max_delay_ms,
        seconds_per_bucket=seconds_per_bucket,
        inline_below_ms=INLINE_BELOW_MS if on_cpu else 0.0,
        unsaturated_rows=unsaturated_rows,
        on_batch=lambda stats: counts.count_batch(name, stats),
        on_misses=lambda misses: counts.count_misses(name, misses),
    )
    return Model(package, BackendFacts.model_validate(backend), reason, batcher, backend.close)


def cpu_max_batch(spec: InputSpec) -> int:
    """The largest of `DEFAULT_BUCKETS` within `CPU_BATCH_PIXELS`."""
    fitting = CPU_BATCH_PIXELS // (spec.height * spec.width)
    return max(bucket for bucket in DEFAULT_BUCKETS if bucket <= max(1, fitting))


def cpu_unsaturated_rows(spec: InputSpec, threads: int, seconds_per_bucket: Mapping[int, float]) -> int | None:
    """The bucket from which on a larger batch saves a CPU hardly any time; None where small batches don't pay.

    `threads` 0 are those of all usable cores.
    """
    rows = (threads or usable_cpus()) * CPU_CORE_PIXELS // (spec.height * spec.width)
    for bucket, seconds in sorted(seconds_per_bucket.items()):
        if bucket >= rows:
            return bucket if 1000 * seconds >= SMALL_BATCH_MS else None
    return None


def cpu_buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes in rows for a CPU, ascending: `buckets_up_to(max_batch)`, and those halfway between powers of two.

    A CPU takes as long for a row of padding as for any other. With powers of two alone a batch of 5 costs as much as 8;
    batches of all sizes up to 16 are padded by a quarter on average, with those in between by a tenth.
    """
    sizes = buckets_up_to(max_batch)
    halfway = (low + low // 2 for low, high in pairwise(sizes) if high == 2 * low > 2)
    return tuple(sorted((*sizes, *halfway)))


def warm_up(backend: Backend, package: ModelPackage) -> dict[int, float]:
    """Run every bucket of `backend` on noise; return the measured seconds of one call, by bucket.

    The smallest bucket runs once before it is measured, since the first call pays for the runtime's own set-up. Buckets
    that take less than 50 ms are measured up to three times, and the fastest counts.

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
