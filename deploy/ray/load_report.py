"""What a replica reports to Ray's autoscaler."""

import time
from collections.abc import Callable

from fuseline.deploy.ray.autoscaling import ReplicaLoad
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.metrics.inference_statistics import InferenceStatistics


class LoadReport:
    """Makes the reports of one model, each of which tells how busy it was since the one before."""

    def __init__(
        self,
        batcher: Batcher,
        statistics: Callable[[], InferenceStatistics],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin now. `statistics` returns the model's, in which batches are counted; `clock` tells seconds."""
        self._batcher = batcher
        self._statistics = statistics
        self._clock = clock
        self._since = clock()
        self._computed_s = self._compute_seconds()

    def take(self) -> dict[str, float]:
        """Return the numbers of a `ReplicaLoad` by their names."""
        now, computed_s = self._clock(), self._compute_seconds()
        lanes, elapsed = self._batcher.policy.lanes, now - self._since
        busy = (computed_s - self._computed_s) / (lanes * elapsed) if elapsed > 0 else 0.0
        self._since, self._computed_s = now, computed_s
        # A long batch counts where it ends, so that one interval may have more than its own time.
        busy = min(1.0, busy)
        load = ReplicaLoad(
            float(self._batcher.queued_rows), self._batcher.predicted_wait_s, busy, self._rows_per_s(lanes)
        )
        return load._asdict()

    def _compute_seconds(self) -> float:
        sums = self._statistics().compute_by_batch_rows.values()
        return sum(each.ns for each in sums) / 1e9

    def _rows_per_s(self, lanes: int) -> float:
        seconds = self._batcher.bucket_seconds
        largest = max(seconds, default=0)
        return lanes * largest / seconds[largest] if largest and seconds[largest] > 0 else 0.0
