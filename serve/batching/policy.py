"""How batches are formed: their sizes, what an idle backend waits for, and how much may wait.

Everything here is plain numbers: pixels of an image, cores of a CPU, seconds of a batch of each size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

DEFAULT_MAX_BATCH = 32
"""Number of rows of the largest batch that engines are built for and servers form, unless told otherwise."""

QUIET_TURNS = 8
"""Number of turns of the event loop without a new row after which an idle backend gets its batch. gRPC hands out
requests that arrive together one in a turn or a few; a fast backend that took the first at once would get a batch for
each, and each batch costs as much CPU as several requests. A turn without anything to do takes some microseconds."""

MOST_LANES = 16
"""Largest number of batches that are computed side by side."""

SLOW_CALL_SECONDS = 0.002
"""Seconds of a call after which whatever waits becomes the next batch at once: the backend's time is what is scarce."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How one batcher forms its batches. Making one raises `ValueError` for numbers that make no sense."""

    buckets: tuple[int, ...]
    """Batch sizes in rows that the backend may be called with: ascending, however they were given. The last is the
    largest batch."""
    max_queue_rows: int
    """Largest number of waiting rows; those of the running batch don't count."""
    max_queue_ms: float = math.inf
    """Longest predicted wait of a request without a deadline for its first batch."""
    max_delay_ms: float = 0.0
    """Longest time that an idle backend waits for a fuller batch."""
    latency_target_ms: float | None = None
    """Time from admission to the end of computing below which batches and delays are to keep 99 % of the requests;
    None: nothing is steered."""
    unsaturated_rows: int | None = None
    """Largest number of rows of a batch while fewer wait than the largest bucket has; None: as many as wait. Where a
    row costs the same in any batch, smaller batches answer sooner: no request waits for the rows behind its own, nor
    does a new one wait for all of a large batch that has just begun."""
    inline_below_ms: float = 0.0
    """Time below which a batch, by its bucket's measured time, is computed on the event loop, where nothing else
    happens meanwhile."""
    quiet_turns: int = QUIET_TURNS
    """Number of turns of the event loop without a new row after which an idle backend gets its batch."""
    slow_call_seconds: float = SLOW_CALL_SECONDS
    """Seconds of a call from which on the next call follows at once."""
    lanes: int = 1
    """Number of batches that are computed side by side."""
    lanes_share_device: bool = False
    """Whether a batch slows the others down as much as its own share of the work: a GPU computes one after the other,
    while each lane of a CPU has cores of its own. Then rows are not spread over idle lanes, and a batch begins beside
    another only if it is no smaller."""
    alone_rows: int = 0
    """Largest number of rows, one of the buckets, that an idle backend computes as one batch with all its cores, rather
    than on lanes; 0: none."""

    def __post_init__(self) -> None:
        if not self.buckets or min(self.buckets) < 1:
            raise ValueError(f"buckets {list(self.buckets)}: expected some, all above 0")
        if self.max_queue_rows < 1 or self.max_delay_ms < 0 or self.max_queue_ms <= 0:
            raise ValueError(
                f"max_queue_rows {self.max_queue_rows}, max_queue_ms {self.max_queue_ms}, max_delay_ms "
                f"{self.max_delay_ms}: expected at least 1, above 0, and at least 0"
            )
        if not 1 <= self.lanes <= MOST_LANES or self.alone_rows not in (0, *self.buckets):
            raise ValueError(
                f"lanes {self.lanes}, alone_rows {self.alone_rows}: expected 1 to {MOST_LANES}, and 0 or one of the "
                f"buckets {list(self.buckets)}"
            )
        if self.latency_target_ms is not None and self.latency_target_ms <= 0:
            raise ValueError(f"latency_target_ms {self.latency_target_ms}: expected above 0")
        object.__setattr__(self, "buckets", tuple(sorted(set(self.buckets))))

    @property
    def small_batch_rows(self) -> int:
        """`unsaturated_rows` within the largest bucket."""
        return min(self.unsaturated_rows or self.buckets[-1], self.buckets[-1])

    @property
    def alone_buckets(self) -> tuple[int, ...]:
        """Buckets that a batch with all cores may have."""
        return tuple(bucket for bucket in self.buckets if bucket <= self.alone_rows)


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """Return batch sizes in rows, ascending: the powers of two below `max_batch`, and `max_batch`."""
    return (*(2**exponent for exponent in range((max_batch - 1).bit_length())), max_batch)


DEFAULT_BUCKETS = buckets_up_to(DEFAULT_MAX_BATCH)


@dataclass(frozen=True, slots=True)
class CpuBatching:
    """What makes batches good on a CPU, where a row takes about as long in any batch that keeps the cores busy."""

    full_pixels: int = 16 * 224 * 224
    """Number of pixels of a batch that fills the cores. Measured with ResNet-18 at 224 x 224 and 32 clients on 2 cores:
    batches of 8 serve 0.92 of the bare runtime's images/s, of 16 0.97, of 32 no more, and their activations take twice
    the memory."""
    core_pixels: int = 2 * 224 * 224
    """Number of pixels of a batch for each core from which on a row takes about as long in any batch. Measured with
    ResNet-18 at 224 x 224: on 2 cores a row takes 0.95 to 1.15 times as long in a batch of 4 as in one of 16, alone 1.2
    to 1.7 times; on 1 core 1.06 to 1.13 times as long in a batch of 2 as in one of 8."""
    lane_pixels: int = 4 * 224 * 224
    """Number of pixels of a lane's largest batch for each of its cores. Measured with ResNet-18 at 224 x 224 and two
    lanes on 2 cores: batches of 4 serve 0.99 to 1.05 of the images/s of batches of 8, in any precision, and their
    activations take half the memory."""
    small_batch_ms: float = 10.0
    """Time of a small batch from which on batches are kept small: a faster network costs less than the overhead of a
    batch of its own."""
    inline_below_ms: float = 1.0
    """Time that a busy event loop about loses by handing a batch to a thread and back: a batch that takes less is
    computed on the loop. A GPU's batches are not: while the GPU computes, the loop's time is free for requests."""

    def buckets(self, row_pixels: int, max_batch: int | None = None) -> tuple[int, ...]:
        """Return batch sizes in rows, ascending: `buckets_up_to(max_batch)`, and those halfway between powers of two.

        None for `max_batch` takes the largest of `DEFAULT_BUCKETS` within `full_pixels`. A CPU takes as long for a row
        of padding as for any other. With powers of two alone a batch of 5 costs as much as one of 8, and batches of all
        sizes up to 16 are padded by a quarter on average; with the sizes halfway between, by a tenth.
        """
        if max_batch is None:
            fitting = max(1, self.full_pixels // row_pixels)
            max_batch = max(bucket for bucket in DEFAULT_BUCKETS if bucket <= fitting)
        sizes = buckets_up_to(max_batch)
        halfway = (low + low // 2 for low, high in pairwise(sizes) if high == 2 * low > 2)
        return tuple(sorted((*sizes, *halfway)))

    def lane_buckets(self, row_pixels: int, cores: float, max_batch: int | None = None) -> tuple[int, ...]:
        """Return the batch sizes of a lane that has `cores` cores, as `buckets` does for all of them."""
        return replace(self, full_pixels=round(cores * self.lane_pixels)).buckets(row_pixels, max_batch)

    def refined(
        self, policy: BatchPolicy, *, row_pixels: int, cores: int, seconds_per_bucket: Mapping[int, float]
    ) -> BatchPolicy:
        """Return `policy` with small batches where they pay on `cores` cores, and fast ones on the event loop."""
        rows = self.unsaturated_rows(row_pixels, cores, seconds_per_bucket)
        # A user who sets a delay asks for fuller batches.
        return replace(
            policy, unsaturated_rows=None if policy.max_delay_ms else rows, inline_below_ms=self.inline_below_ms
        )

    def unsaturated_rows(self, row_pixels: int, cores: int, seconds_per_bucket: Mapping[int, float]) -> int | None:
        """Return the bucket from which on a larger batch saves hardly any time; None where small batches don't pay."""
        rows = cores * self.core_pixels // row_pixels
        for bucket, seconds in sorted(seconds_per_bucket.items()):
            if bucket >= rows:
                return bucket if 1000 * seconds >= self.small_batch_ms else None
        return None


DEFAULT_CPU_BATCHING = CpuBatching()
