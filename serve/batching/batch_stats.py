"""What a batcher tells of each batch."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fuseline.serve.batching.departure import BatchReason
from fuseline.serve.batching.requests import Batch, BatchedRows


class BatchStats(NamedTuple):
    """Statistics of one batch."""

    rows: int
    """Number of rows before padding."""
    bucket: int
    """Number of rows after padding."""
    queue_ms: float
    """Time that the oldest request had waited."""
    compute_ms: float
    failed: bool
    """Whether the backend raised, or returned something of another shape."""
    reason: BatchReason = "idle"
    """Why it began when it did."""
    lane: int = 0
    """Number of its lane, from 0 on; -1: it had all cores, while no lane worked."""
    started: float = 0.0
    """When it began, on the batcher's clock."""
    shares: Sequence[tuple[asyncio.Future[BatchedRows], int, int]] = ()
    """What `submit` returned for each request with rows in it, with the first of them and their number."""


class Misses(NamedTuple):
    """How far predictions missed since the batch before."""

    late_seconds: Sequence[float]
    """Seconds from the predicted time of each answer to when it was handed out; below 0: it came earlier."""
    dropped: int
    """Number of requests that left the queue because they could not be answered in time any more."""


def stats_of(batch: Batch, lane: int) -> BatchStats:
    """Return the statistics of `batch`, which has ended on the lane of that number."""
    return BatchStats(
        len(batch.rows),
        batch.bucket,
        1000 * (batch.started - batch.admitted),
        1000 * batch.compute_seconds,
        not isinstance(batch.outcome, np.ndarray),
        batch.reason,
        lane,
        batch.started,
        batch.shares,
    )
