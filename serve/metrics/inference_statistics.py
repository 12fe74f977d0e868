"""Counts and sums of one model's requests and batches since the start."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from fuseline.serve.batching.batcher import BatchedRows, BatchStats


@dataclass(slots=True)
class DurationSum:
    """Number of events, and the total time that they took."""

    count: int = 0
    ns: int = 0

    def add_ms(self, ms: float) -> None:
        """Count one more event, which took `ms`."""
        self.count += 1
        self.ns += round(ms * 1e6)


def statistics_key(model: str, version: str = "") -> str:
    """Return the key of a version's statistics among all: no name and no version has a slash."""
    return f"{model}/{version}" if version else model


def version_of_key(key: str) -> tuple[str, str]:
    """Return the name and the version that `statistics_key` made `key` of."""
    name, _, version = key.partition("/")
    return name, version


class InferenceStatistics:
    """The statistics of one version of a model."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        """Begin with zeros. `wall_clock` tells seconds since 1970."""
        self.last_inference_ms = 0
        """Time of the last batch that succeeded, in ms since 1970; 0: none has."""
        self.rows = 0
        """Number of images in the batches that succeeded."""
        self.batches = 0
        """Number of batches that succeeded."""
        self.compute_by_batch_rows: dict[int, DurationSum] = {}
        """Backend calls that succeeded, by the rows of their batch before padding."""
        self.success = DurationSum()
        """Requests that were answered, each from its arrival to its answer."""
        self.fail = DurationSum()
        """Requests that were refused, failed or cancelled."""
        self.failed_by_code: dict[str, int] = {}
        """Their number in this process, by gRPC status."""
        self.queue = DurationSum()
        """Waits of answered requests for their last batch."""
        self.compute = DurationSum()
        """Backend calls of answered requests; one that several requests shared counts for each of them."""
        self._wall_clock = wall_clock

    def count_answer(self, seconds: float, batched: BatchedRows) -> None:
        """Count one answered request."""
        self.success.add_ms(1000 * seconds)
        self.queue.add_ms(batched.queue_ms)
        self.compute.add_ms(batched.compute_ms)

    def count_failure(self, seconds: float, code: str) -> None:
        """Count one request that was refused, failed or cancelled, with the gRPC status `code`."""
        self.fail.add_ms(1000 * seconds)
        self.failed_by_code[code] = self.failed_by_code.get(code, 0) + 1

    def count_batch(self, stats: BatchStats) -> None:
        """Count one batch."""
        if stats.failed:
            return
        self.last_inference_ms = round(1000 * self._wall_clock())
        self.rows += stats.rows
        self.batches += 1
        self.compute_by_batch_rows.setdefault(stats.rows, DurationSum()).add_ms(stats.compute_ms)
