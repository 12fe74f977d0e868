"""`python -m fuseline.benchmarks.plan.recorded_server PACKAGE…`: `fuseline serve`, writing down each batch.

The environment variable `PLAN_BATCH_RECORD` names the file, of `fuseline.benchmarks.plan.batch_record`. Before the
server is ready it times bare calls of its lanes. Then a batch and a request cost it some microseconds more than usual.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fuseline.serve.model
from fuseline.benchmarks.plan.batch_record import BatchingFacts, BatchRecord, CallSeconds
from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.lanes import Lane
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.commands.serve_command import main
from fuseline.serve.lanes.warm_up import run_once

RECORD_VARIABLE = "PLAN_BATCH_RECORD"

_BUCKET_SECONDS = 0.4
_MOST_CALLS = 200


class RecordedBatcher(Batcher):
    """A batcher whose batches are written down."""

    def __init__(self, infer: Any, policy: BatchPolicy, **options: Any) -> None:
        """See `Batcher`."""
        self._record = BatchRecord(Path(os.environ[RECORD_VARIABLE]))
        self._record.begin(_facts(infer, policy, options))
        self._ended = 0.0
        self._knows_loop = False
        count = options.pop("on_batch")

        def note(stats: BatchStats) -> None:
            self._record.add_batch(stats.bucket, stats.rows, stats.lane, stats.started, self._ended)
            count(stats)

        super().__init__(infer, policy, on_batch=note, **options)

    def submit(self, rows: Any, **options: Any) -> Any:
        """See `Batcher`."""
        if not self._knows_loop:
            self._knows_loop = True
            self._record.add_loop(threading.get_native_id())
        now = self._clock()
        request = super().submit(rows, **options)
        self._record.add_request(len(rows), now)
        return request

    def _finish(self, lane: Lane) -> None:
        self._ended = self._clock()
        super()._finish(lane)


def _facts(infer: Any, policy: BatchPolicy, options: dict[str, Any]) -> BatchingFacts:
    began = time.monotonic()
    rows_of = partial(_noise, options["row_shape"], np.dtype(options["row_dtype"]))
    lanes = options["lanes"] or (infer,)
    buckets = [_timed(lanes, rows_of(rows)) for rows in policy.buckets]
    alone = [_timed((infer,), rows_of(rows)) for rows in policy.alone_buckets]
    return BatchingFacts(
        lanes=policy.lanes,
        lanes_share_device=policy.lanes_share_device,
        unsaturated_rows=policy.unsaturated_rows,
        inline_below_ms=policy.inline_below_ms,
        buckets=buckets,
        alone=alone,
        measuring_seconds=time.monotonic() - began,
    )


def _noise(shape: tuple[int, ...], dtype: np.dtype[Any], rows: int) -> Any:
    return np.random.default_rng(0).integers(0, 256 if dtype == np.uint8 else 2, (rows, *shape)).astype(dtype)


def _timed(lanes: Sequence[Callable[[Any], Any]], pixels: Any) -> CallSeconds:
    """Time calls of all lanes at once and, in turn, of the first one."""
    ends = time.monotonic() + _BUCKET_SECONDS
    together: list[float] = []
    single: list[float] = []
    run_once(lanes, pixels)
    while not together or (time.monotonic() < ends and len(together) < _MOST_CALLS):
        together += [seconds for seconds, _ in run_once(lanes, pixels)]
        if len(lanes) > 1:
            single += [seconds for seconds, _ in run_once(lanes[:1], pixels)]
    return CallSeconds(rows=len(pixels), together=together, single=single)


if __name__ == "__main__":
    fuseline.serve.model.Batcher = RecordedBatcher  # type: ignore[misc]
    main()
