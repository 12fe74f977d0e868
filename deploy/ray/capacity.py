"""How many requests a replica can use at a time."""

from typing import NamedTuple

from fuseline.serve.batching.policy import DEFAULT_MAX_BATCH
from fuseline.serve.lanes.lane_choice import GPU_LANES, cpu_lane_counts
from fuseline.serve.settings import Settings

_ROUNDS = 2
"""Batches of each lane for which there are rows: one that is computed, and one that begins when it ends."""


class Capacity(NamedTuple):
    """What a replica works on at a time."""

    lanes: int
    max_batch: int
    decode_threads: int

    @property
    def requests(self) -> int:
        """Number of requests, of an image each, that keep every lane and every decoding thread busy.

        With fewer a lane would wait for rows. More would wait in this replica while another may be free sooner; in the
        proxy they wait for whichever is.
        """
        return _ROUNDS * self.lanes * self.max_batch + self.decode_threads


def capacity_of(settings: Settings, *, has_gpu: bool) -> Capacity:
    """Return the capacity of a replica with `settings`; where lanes are measured at its start, of the most there may
    be.
    """
    measured = GPU_LANES if has_gpu else max(cpu_lane_counts(settings.threads), default=1)
    return Capacity(settings.lanes or measured, settings.max_batch or DEFAULT_MAX_BATCH, settings.decode_threads)
