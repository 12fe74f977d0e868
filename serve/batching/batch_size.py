"""Decides how large batches are, from plain numbers: who waits, how long callers have, and what a bucket takes."""

import math

from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.profile import BatchProfile

PATIENT_SHARE = 0.5
"""Share of the time that callers have, beyond one batch, that a batch may take: see `BatchSize._chosen_rows`."""

ABOUT_AS_GOOD = 0.95
"""Share of the best score from which on another choice counts as equally good: the difference is taken for noise."""

BUDGET_RECOVERY = 0.02
"""Share of the difference by which one caller with more time moves the time that callers are taken to have."""

BUDGET_SECONDS = 2.0
"""Seconds without a caller who has a deadline after which callers are taken to have any time."""

AS_FAST = 0.97
"""Share of a batch's rows a second from which on a smaller one loses nothing."""

MIXED_SECONDS = 1.0
"""Seconds without a small request that went before rows of a larger one, after which batches may be large again."""


class BatchSize:
    """The largest number of rows of a batch, chosen anew for each. All takes constant time."""

    def __init__(self, profile: BatchProfile, policy: BatchPolicy) -> None:
        """Begin with the largest bucket; `profile` has the same buckets as `policy`."""
        self._profile = profile
        self._buckets = policy.buckets
        self._lanes = policy.lanes
        self.small_rows = policy.small_batch_rows
        """Largest number of rows of a small request, and of a batch while that costs nothing."""
        self.saturated = False
        """Whether more rows come than the backend computes, or did a moment ago."""
        self.mixed = False
        """Whether small requests and larger ones come side by side, or did a moment ago."""
        self.rows = policy.buckets[-1]
        """Largest number of rows that a batch should have at present."""
        self.most_rows = policy.buckets[-1]
        """Largest number of rows that a batch may have: a latency target may set it lower than the largest bucket."""
        self._budget = math.inf
        self._budget_noted_at = -math.inf

    def of_next_batch(self, queued_rows: int) -> int:
        """Return the largest number of rows of the next batch that is formed from a queue of `queued_rows`.

        Until the largest bucket can be filled batches are small, if that costs nothing: see `BatchPolicy`,
        `unsaturated_rows`. From then on they are large until the queue is short, so that predictions hold; while small
        requests go before rows of larger ones they stay small, so that the former wait for a small batch.
        """
        if self.saturated or queued_rows >= self._buckets[-1]:
            return self._mixed_rows() if self.mixed else self.rows
        return min(self.rows, self.small_rows)

    def note_caller(self, seconds: float, now: float) -> None:
        """Note the time that a caller gave: batches are kept small enough for callers with little time."""
        self._budget_noted_at = now
        if seconds < self._budget:
            self._budget = max(seconds, 1e-6)
        elif self._budget < math.inf:
            self._budget += BUDGET_RECOVERY * (seconds - self._budget)

    def choose(self, queued_rows: int, now: float, idle_lanes: int, passed_at: float) -> None:
        """Choose `rows` anew as a batch is formed; `passed_at` is when a small request last passed a larger one."""
        self.mixed = now - passed_at < MIXED_SECONDS
        if queued_rows > idle_lanes * self._buckets[-1]:
            self.saturated = True
        elif 2 * queued_rows < self._buckets[-1]:
            self.saturated = False
        if now - self._budget_noted_at > BUDGET_SECONDS:
            self._budget = math.inf
        self.rows = self._chosen_rows()

    def _mixed_rows(self) -> int:
        """Return the largest number of rows of a batch while small requests and larger ones come side by side.

        That is the smallest bucket that computes about as many rows a second as the present one, by measurement.
        """
        least = self.rows / max(1e-9, self._profile.batch_seconds(self.rows)) * AS_FAST
        for bucket in self._buckets:
            if self.small_rows <= bucket < self.rows and bucket >= least * self._profile.batch_seconds(bucket):
                return bucket
        return self.rows

    def _chosen_rows(self) -> int:
        """Return the bucket that brings the most answers in time.

        A bucket's score is its rows per second, times the share of callers who can wait for such a batch: one who comes
        when a batch has just begun waits for a lane to be free, and for the next. All callers count where
        `PATIENT_SHARE` of the time that they have, beyond one batch, is as long as a lane's turn takes to come; without
        deadlines they all do.
        """
        best, best_score = self.most_rows, 0.0
        if self._budget == math.inf:
            return best
        for bucket in self._buckets[: self._buckets.index(best) + 1]:
            score = self._score(bucket)
            # Of buckets about as good the larger one is taken: each batch has a cost of its own.
            if score >= ABOUT_AS_GOOD * best_score:
                best, best_score = bucket, max(score, best_score)
        # The present size is kept while it is about as good: predictions hold as long as it doesn't change.
        kept = min(self.rows, self.most_rows)
        return best if self._score(kept) < ABOUT_AS_GOOD * best_score else kept

    def _score(self, bucket: int) -> float:
        if (seconds := self._profile.batch_seconds(bucket)) <= 0:
            return math.inf
        turn = seconds / self._lanes
        return bucket / seconds * min(1.0, max(0.0, PATIENT_SHARE * (self._budget - seconds) / turn))
