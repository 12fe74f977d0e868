"""Chooses the bucket of the next batch, and finds the requests that can't be answered in time any more."""

from bisect import bisect_left

from fuseline.serve.batching.admission import Admission
from fuseline.serve.batching.batch_size import ABOUT_AS_GOOD
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.request_queue import RequestQueue
from fuseline.serve.batching.requests import Request


class BucketChoice:
    """Chooses buckets by what waits in the queue and by the measured times of batches."""

    def __init__(self, buckets: tuple[int, ...], queue: RequestQueue, admission: Admission) -> None:
        self._buckets = buckets
        self._queue = queue
        self._admission = admission
        self.heeded_deadline = False
        """Whether a deadline made the latest bucket smaller, or requests leave for it."""

    def next_bucket(self, now: float, most_rows: int, profile: BatchProfile) -> tuple[int, list[tuple[Request, float]]]:
        """Return the bucket of a batch that begins `now`, and the requests that had to leave the queue for it.

        The batch has at most `most_rows`, and takes as long as `profile` says. Those requests would be answered after
        their deadlines; each comes with when that would be. The queue must not be empty before the call; it may be
        afterwards.
        """
        queue = self._queue
        self.heeded_deadline = False
        bucket = self._bucket_of(min(queue.rows, most_rows), profile)
        if queue.earliest_deadline >= now + profile.batch_seconds(bucket) + self._admission.delivery_seconds:
            return bucket, []
        best, best_score = bucket, 0.0
        for candidate in self._buckets[: bisect_left(self._buckets, bucket) + 1]:
            in_time, _ = self._try_bucket(candidate, now, profile)
            score = in_time / max(1e-9, profile.batch_seconds(candidate))
            if score >= ABOUT_AS_GOOD * best_score:
                best, best_score = candidate, max(score, best_score)
        _, late = self._try_bucket(best, now, profile)
        self.heeded_deadline = best < bucket or bool(late)
        for request, _ in late:
            queue.remove(request)
        return self._bucket_of(min(best, queue.rows), profile) if queue.rows else best, late

    def _bucket_of(self, rows: int, profile: BatchProfile) -> int:
        """Return the smallest bucket that holds `rows`; when saturated, the one below if padding costs more."""
        above = bisect_left(self._buckets, rows)
        bucket = self._buckets[above]
        if bucket > rows and above and self._admission.size.saturated:
            below, seconds = self._buckets[above - 1], profile.batch_seconds
            if below * seconds(bucket) > rows * seconds(below) > 0:
                return below
        return bucket

    def _try_bucket(self, bucket: int, now: float, profile: BatchProfile) -> tuple[int, list[tuple[Request, float]]]:
        """Return what a batch of `bucket` that begins `now` would come to.

        The number is that of its rows of requests that are answered in time. The list has the requests that would be
        answered too late although it is their turn, with when that would be.
        """
        room, late = bucket, []
        idle = self._admission.idle_lanes
        finish = now + profile.batch_seconds(bucket) + self._admission.delivery_seconds
        for request in self._queue:
            left = len(request.rows) - request.taken
            whole = finish if left <= room else finish + self._admission.predict(0, left - room, idle).answered
            if whole > request.deadline and not request.prediction.is_probe:
                late.append((request, whole))
                continue
            room -= min(room, left)
            if not room:
                break
        return bucket - room, late
