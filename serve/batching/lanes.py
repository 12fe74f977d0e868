"""Lanes: the instances of the backend that compute batches side by side."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.requests import Batch, Logits

Infer = Callable[[NDArray[Any]], Logits]
"""Computes (rows, *row shape) -> logits (rows, classes) float32."""

LOST_AFTER = 4.0
"""Multiple of its expected time after which a batch counts as one that may never end."""


class Lane:
    """One instance of the backend, and the batch that it computes at present."""

    __slots__ = ("compute", "hand_over", "lost", "profile", "running")

    def __init__(
        self,
        compute: Callable[[Batch], None],
        profile: BatchProfile,
        hand_over: Callable[[Callable[[], None]], object],
    ) -> None:
        """`compute` sets a batch's outcome; `hand_over` has a call made by the lane's thread.

        Lanes that are alike share one `profile`.
        """
        self.compute = compute
        self.profile = profile
        self.hand_over = hand_over
        self.running: Batch | None = None
        self.lost = False
        """Whether its last call never ended, so that it gets no batch: see `lane_recovery`."""

    def free_at(self, now: float) -> float:
        """Return when the running batch should end, by its bucket's measured time, on the batcher's clock.

        0 stands for a lane that is free, infinity for one whose batch takes so long that it may never end.
        """
        if (batch := self.running) is None:
            return math.inf if self.lost else 0.0
        seconds = self.profile.batch_seconds(batch.bucket)
        return math.inf if now - batch.started > LOST_AFTER * seconds > 0 else batch.started + seconds


def seconds_until_free(free_at: Iterable[float], now: float) -> tuple[float, ...]:
    """Return the seconds until each lane is free, ascending; lanes that may never be are left out, unless all are."""
    ascending = sorted(free_at)
    known = [max(0.0, at - now) for at in ascending if at < math.inf]
    return tuple(known or [0.0] * len(ascending))


def rows_to_start(policy: BatchPolicy, queued_rows: int, idle_lanes: int, running_rows: Sequence[int]) -> int:
    """Return how many of `queued_rows` a batch on one of `idle_lanes` may have that begins now; 0: none does.

    `running_rows` has the number of rows of each batch on the other lanes. Lanes with cores of their own share the
    rows evenly. On a device that computes one batch after the other, a small batch beside a larger one would gain
    nothing: its rows, and those that come meanwhile, wait until they are as many, or the other has ended.
    """
    if not policy.lanes_share_device:
        return -(-queued_rows // idle_lanes)
    enough = min(*running_rows, policy.buckets[-1]) if running_rows else 0
    return queued_rows if queued_rows >= enough else 0
