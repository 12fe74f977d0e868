"""The lanes of one batcher: which are idle, who makes their calls, and what takes the place of one that is lost."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from fuseline.serve.batching.batch_computer import BatchComputer
from fuseline.serve.batching.call_thread import CallThread
from fuseline.serve.batching.lanes import Infer, Lane
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.requests import Batch


class LanePool:
    """Lanes, each called by a thread of its own unless an executor makes all calls.

    Beside them one more may compute with all cores, in the thread of the first of them, while no other works.
    """

    def __init__(
        self,
        computes: Sequence[Infer],
        alone: Infer | None,
        policy: BatchPolicy,
        *,
        row_shape: tuple[int, ...],
        row_dtype: np.dtype[Any],
        seconds_per_bucket: Mapping[int, float],
        alone_seconds_per_bucket: Mapping[int, float],
        clock: Callable[[], float],
        executor: Executor | None,
    ) -> None:
        """Make a lane of each of `computes`, all idle.

        `alone` computes with all cores what has at most the policy's `alone_rows`; None: nothing does.
        """
        self._row_shape, self._row_dtype = row_shape, row_dtype
        self._clock = clock
        self._executor = executor
        self._largest = policy.buckets[-1]
        self.profile = BatchProfile(policy.buckets, seconds_per_bucket, clock())
        """Profile of the lanes' batches."""
        # Those of the lanes, in their order; none where an executor makes their calls.
        self._threads: list[CallThread] = []
        # The threads end also when the pool is dropped without `end_threads`.
        self.end_threads = weakref.finalize(self, _end, self._threads)
        """Lets the threads end once their calls have returned. Calling it again does nothing."""
        self.lanes = [self._lane(compute, number) for number, compute in enumerate(computes)]
        """Every lane but `alone`, in order; one that was lost stays until another takes its place."""
        self.idle = list(reversed(self.lanes))
        """Lanes that may get a batch; the last is the next."""
        self.alone: Lane | None = None
        """Lane that computes with all cores; None: there is none."""
        if alone is not None and (buckets := policy.alone_buckets):
            profile = BatchProfile(buckets, alone_seconds_per_bucket, clock())
            self.alone = Lane(self._computing(alone, buckets[-1]), profile, self.lanes[0].hand_over)

    @property
    def all(self) -> list[Lane]:
        """Every lane, `alone` included."""
        return [*self.lanes, *([] if self.alone is None else [self.alone])]

    @property
    def all_idle(self) -> bool:
        """Whether no lane works or is lost."""
        return len(self.idle) == len(self.lanes)

    @property
    def all_lost(self) -> bool:
        """Whether a call of each lane never ended."""
        return all(lane.lost for lane in self.lanes)

    @property
    def learned_at(self) -> float:
        """When a batch was last measured."""
        learned_at = self.profile.learned_at
        return learned_at if self.alone is None else max(learned_at, self.alone.profile.learned_at)

    def running(self) -> list[Batch]:
        """Return the batches that are being computed."""
        if len(self.idle) == len(self.lanes):
            return []
        if self.alone is not None and self.alone.running is not None:
            return [self.alone.running]
        return [lane.running for lane in self.lanes if lane.running is not None]

    def free_at(self, now: float) -> list[float]:
        """Return when each lane is free, as `Lane.free_at` says: all are busy while one batch has all cores."""
        if self.alone is not None and self.alone.running is not None:
            return [self.alone.free_at(now)] * len(self.lanes)
        return [lane.free_at(now) for lane in self.lanes]

    def number_of(self, lane: Lane) -> int:
        """Return the number of a lane, from 0 on; -1: it is `alone`."""
        return -1 if lane is self.alone else self.lanes.index(lane)

    def take(self, lane: Lane) -> None:
        """Note that `lane`, the last idle one or `alone`, has got a batch."""
        if lane is self.alone:
            self.idle.clear()
        else:
            self.idle.pop()

    def put_back(self, lane: Lane) -> None:
        """Note that the batch of `lane` has ended; one that is lost gets no other."""
        if lane is self.alone:
            if lane.lost:
                # The first lane's thread hangs, not the lane; nothing computes alone any more.
                self.alone = None
                self.lanes[0].hand_over = self._new_hand_over(0)
            self.idle = list(reversed(self.lanes))
        elif not lane.lost:
            self.idle.append(lane)

    def replace(self, lost: Lane, compute: Infer | None) -> None:
        """Have a lane in place of `lost`, idle and in a new thread, that computes by `compute`; None: as that did."""
        number = self.lanes.index(lost)
        if compute is None:
            lane = Lane(lost.compute, lost.profile, self._new_hand_over(number))
        else:
            lane = self._lane(compute, number)
        self.lanes[number] = lane
        if self.alone is not None and number == 0:
            self.alone.hand_over = lane.hand_over
        self.idle.append(lane)

    def join_threads(self) -> None:
        """Wait, after `end_threads`, until the threads have ended, but for those of lanes that are lost."""
        for thread, lane in zip(self._threads, self.lanes, strict=False):
            if not lane.lost:
                thread.join()

    def _computing(self, compute: Infer, max_rows: int) -> Callable[[Batch], None]:
        shape, dtype = self._row_shape, self._row_dtype
        return BatchComputer(compute, row_shape=shape, row_dtype=dtype, max_rows=max_rows, clock=self._clock).compute

    def _lane(self, compute: Infer, number: int) -> Lane:
        return Lane(self._computing(compute, self._largest), self.profile, self._new_hand_over(number))

    def _new_hand_over(self, number: int) -> Callable[[Callable[[], None]], object]:
        """Return what has calls of lane `number` made: by a new thread, unless there is an executor."""
        if self._executor is not None:
            return self._executor.submit
        thread = CallThread(f"fuseline-lane-{number}")
        # The thread before ends once its call returns, if it ever does.
        _end(self._threads[number : number + 1])
        self._threads[number : number + 1] = [thread]
        return thread.submit


def _end(threads: Sequence[CallThread]) -> None:
    for thread in threads:
        thread.end()
