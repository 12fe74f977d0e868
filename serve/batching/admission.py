"""Whether a request is taken, and how large batches are: plain numbers, no queue and no futures.

A request's answer is predicted from what was measured: the rest of the running batch, the rows ahead, its own batch,
and what handing out takes. Predictions miss; by how much is measured too, and a deadline has to lie so much later.
Acting only on what will be in time is Clockwork's idea (Gujarati et al., OSDI 2020), dropping early what won't Nexus's
(Shen et al., SOSP 2019).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.predictions import HORIZONS, Margins, PredictedAnswer
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.errors import DeadlineError, OverloadedError

PATIENT_SHARE = 0.5
"""See `Admission._chosen_rows`."""

ABOUT_AS_GOOD = 0.95
"""So much of the best is taken for noise where there is another reason to choose."""

BUDGET_RECOVERY = 0.02
"""How far one caller with more time moves the time that callers are taken to have."""

BUDGET_SECONDS = 2.0
"""After so long without a caller who has a deadline, they are taken to have any time."""

RATE_SECONDS = 0.5
"""What was counted so long ago weighs a third in the rate at which rows come."""

DELIVERY_RATE = 0.1
"""Weight of the newest batch in what handing out takes."""


class Prediction(NamedTuple):
    """Seconds from now."""

    starts: float
    """Until a batch takes the first of the rows."""
    answered: float
    """Until the answer to all of them is handed out."""


PREDICT_EVERY = 8
"""Of the requests without a deadline that have less than a batch ahead, which are taken in any case: a prediction costs
a hundredth of all that is done for a request."""


class Ready(NamedTuple):
    """In how many seconds rows will be there that have to be made first."""

    seconds: float
    alone_seconds: float
    """If nobody were ahead."""


AT_ONCE = Ready(0.0, 0.0)


class Reservation:
    """Room for the rows of an admitted request that are yet to be made."""

    __slots__ = ("_on_release", "_row_count", "predicted")

    def __init__(self, row_count: int, predicted: PredictedAnswer, *, on_release: Callable[[int], None]) -> None:
        """`on_release` is called once with `row_count`."""
        self._row_count = row_count
        self._on_release = on_release
        self.predicted = predicted

    def release(self) -> None:
        """Give the room back. Calling it again does nothing."""
        row_count, self._row_count = self._row_count, 0
        if row_count:
            self._on_release(row_count)


class Load(NamedTuple):
    """What is ahead of a newcomer."""

    waiting_rows: int
    """Queued, or admitted and on their way."""
    running_rows: int
    busy_seconds: float
    """Until the running batch ends."""
    may_probe: bool = False
    """Whether nothing runs or waits, and nothing has for a while: predictions are no news, so a request may try."""


class Admission:
    """Predicts answers and learns from how it went. Every method but `learn` takes constant time."""

    def __init__(self, profile: BatchProfile, policy: BatchPolicy) -> None:
        """`profile` is of the buckets of `policy`."""
        self._profile = profile
        self._max_queue_rows = policy.max_queue_rows
        self._max_queue_seconds = policy.max_queue_ms / 1000
        self._buckets = policy.buckets
        self._unsaturated_rows = policy.small_batch_rows
        self.saturated = False
        """Whether there is more work than the backend gets done, or was just now."""
        self._budget = math.inf
        self._budget_noted_at = -math.inf
        self._rows_per_s = 0.0
        self._counted_from: float | None = None
        self._counted_rows = 0
        self.margins = Margins()
        self.delivery_seconds = 0.0
        """From the end of a batch until its answers are handed out."""
        self.batch_rows = policy.buckets[-1]
        """The most rows that a batch should have at present."""
        self._unpredicted = 0
        self.free_rows = self._free_rows()
        """Up to so many rows wait no longer than `max_queue_seconds`, whatever runs."""

    def check(
        self, load: Load, rows: int, deadline: float | None, now: float, ready: Ready = AT_ONCE
    ) -> PredictedAnswer:
        """Return what is predicted for a request of `rows` that is taken.

        Raises:
            OverloadedError: there is no room for so many rows, or too many are ahead of them.
            DeadlineError: the deadline has passed or, by the measured time of batches, can't be met by an idle server.
        """
        starts, answered = self.predict(load.waiting_rows, rows, load.busy_seconds, ready.seconds)
        if load.waiting_rows + rows > self._max_queue_rows:
            raise self._too_many(load.waiting_rows, rows, answered)
        if deadline is None:
            if starts - ready.alone_seconds > self._max_queue_seconds:
                raise OverloadedError(
                    f"{load.waiting_rows + load.running_rows} rows are ahead, which by recent batches takes "
                    f"{1000 * starts:.0f} ms, and a request without a deadline waits "
                    f"{1000 * self._max_queue_seconds:.0f} ms at most; retry later",
                    starts - self._max_queue_seconds,
                )
            return PredictedAnswer(now + answered, answered)
        if (left := deadline - now) <= 0:
            raise passed_deadline(-left)
        surely = answered + self.margins.of(answered)
        if surely > left and not load.may_probe:
            alone = self.predict(0, rows, 0.0, ready.alone_seconds).answered
            alone += self.margins.of(alone)
            if alone > left:
                raise DeadlineError(
                    f"the deadline is in {1000 * left:.1f} ms, but going by recent batches an idle server takes "
                    f"{1000 * alone:.1f} ms for {rows} rows; allow more time"
                )
            self._note_caller(left, now)
            raise OverloadedError(
                f"the deadline is in {1000 * left:.1f} ms, but going by recent batches the answer takes "
                f"{1000 * surely:.1f} ms with {load.waiting_rows + load.running_rows} rows ahead; allow more time or "
                "retry later",
                surely - left,
            )
        self._note_caller(left, now)
        return PredictedAnswer(now + answered, answered, is_probe=surely > left)

    def needs_prediction(self) -> bool:
        """Whether the next request with no more than `free_rows` waiting is predicted, for the record."""
        self._unpredicted = (self._unpredicted + 1) % PREDICT_EVERY
        return self._unpredicted == 1

    def _free_rows(self) -> int:
        is_quick = 2 * self._profile.batch_seconds(self._buckets[-1]) <= self._max_queue_seconds
        return min(self.batch_rows, self._max_queue_rows) if is_quick else 0

    def backpressure(self, load: Load) -> Literal["rows", "time"] | None:
        """Why whoever can wait had better: half the longest wait is predicted, or the next batch is full."""
        if self.predict(load.waiting_rows, 1, load.busy_seconds).starts > self._max_queue_seconds / 2:
            return "time"
        return "rows" if load.waiting_rows >= self.next_batch_rows(load.waiting_rows) else None

    def _too_many(self, waiting_rows: int, rows: int, answered: float) -> OverloadedError:
        most = self._max_queue_rows
        if rows > most:
            return OverloadedError(
                f"a request of {rows} rows can never be queued, the queue's limit is {most} rows; send it in parts"
            )
        total = waiting_rows + rows
        return OverloadedError(
            f"{waiting_rows} rows of at most {most} are queued, no room for {rows} more; retry later",
            # Nothing is known before the first batch was measured.
            answered * (total - most) / total or None,
        )

    def _note_caller(self, seconds: float, now: float) -> None:
        """A caller gave so much time; those with little have batches that they can wait for."""
        self._budget_noted_at = now
        if seconds < self._budget:
            self._budget = max(seconds, 1e-6)
        elif self._budget < math.inf:
            self._budget += BUDGET_RECOVERY * (seconds - self._budget)

    def next_batch_rows(self, queued_rows: int) -> int:
        """The most rows of the next batch that is formed from a queue of `queued_rows`.

        Until the largest bucket could be filled there are small ones, if that costs nothing: see `BatchPolicy`,
        `unsaturated_rows`. From then on there are large ones until the queue is short, so that predictions hold.
        """
        if self.saturated or queued_rows >= self._buckets[-1]:
            return self.batch_rows
        return min(self.batch_rows, self._unsaturated_rows)

    def predict(self, rows_ahead: int, rows: int, busy_seconds: float, ready_seconds: float = 0.0) -> Prediction:
        """What becomes of `rows` behind `rows_ahead` in the queue, the backend being busy for `busy_seconds` more.

        They are there in `ready_seconds`. If that is what takes longest, a batch has begun by then, and half of it is
        left on average.
        """
        total = rows_ahead + rows
        size = self.next_batch_rows(total)
        full_seconds = self._profile.batch_seconds(size)
        batches = (total - 1) // size
        starts = busy_seconds + rows_ahead // size * full_seconds
        wait = busy_seconds + batches * full_seconds
        last: float = total - batches * size
        if wait and last < size:
            # Those who come meanwhile share the last batch.
            last = min(size, last + self._rows_per_s * wait)
        seconds = self._seconds_of(last)
        if ready_seconds > wait:
            starts = wait = ready_seconds + (full_seconds / 2 if rows_ahead or busy_seconds else 0.0)
        return Prediction(starts, wait + seconds + self.delivery_seconds)

    def _seconds_of(self, rows: float) -> float:
        """Of a batch that has `rows` on average."""
        whole = int(rows)
        seconds = self._profile.batch_seconds(whole)
        if (part := rows - whole) > 0:
            seconds += part * (self._profile.batch_seconds(whole + 1) - seconds)
        return seconds

    def begin_batch(self, queued_rows: int, admitted_rows: int, now: float) -> None:
        """Choose anew how large batches are, and learn how fast rows come.

        `admitted_rows` counts all that were queued since the start.
        """
        if queued_rows > self._buckets[-1]:
            self.saturated = True
        elif 2 * queued_rows < self._buckets[-1]:
            self.saturated = False
        if now - self._budget_noted_at > BUDGET_SECONDS:
            self._budget = math.inf
        self.batch_rows = self._chosen_rows()
        self.free_rows = self._free_rows()
        if self._counted_from is None:
            self._counted_from = now
        elif (elapsed := now - self._counted_from) > 0:
            weight = 1 - math.exp(-elapsed / RATE_SECONDS)
            self._rows_per_s += weight * ((admitted_rows - self._counted_rows) / elapsed - self._rows_per_s)
            self._counted_from, self._counted_rows = now, admitted_rows

    def _chosen_rows(self) -> int:
        """The bucket that brings the most answers in time.

        Rows a second, times the share of callers who can wait for such a batch: one who comes when it has just begun
        waits for it and for the next, which is his. `PATIENT_SHARE` of the time that callers have, beyond one batch,
        has to be as long as a batch for all of them to count; without deadlines they all do.
        """
        best, best_score = self._buckets[-1], 0.0
        if self._budget == math.inf:
            return best
        for bucket in self._buckets:
            score = self._score(bucket)
            # What is about as good gives way to the larger: a batch costs something besides.
            if score >= ABOUT_AS_GOOD * best_score:
                best, best_score = bucket, max(score, best_score)
        # Predictions hold as long as batches are as large as they were.
        return best if self._score(self.batch_rows) < ABOUT_AS_GOOD * best_score else self.batch_rows

    def _score(self, bucket: int) -> float:
        if (seconds := self._profile.batch_seconds(bucket)) <= 0:
            return math.inf
        return bucket / seconds * min(1.0, max(0.0, PATIENT_SHARE * (self._budget - seconds) / seconds))

    def learn(
        self,
        answered: Sequence[PredictedAnswer],
        now: float,
        *,
        delivery_seconds: float,
        late: Sequence[tuple[PredictedAnswer, float]] = (),
    ) -> None:
        """Take in what was predicted for the requests that one batch answered, which were handed out at `now`.

        `late`: what was predicted for those that left the queue meanwhile, and when they would have been answered.
        `delivery_seconds`: from the end of that batch until `now`.
        """
        self.delivery_seconds += DELIVERY_RATE * (delivery_seconds - self.delivery_seconds)
        self.margins.learn(answered, now, late)

    def state(self) -> list[float]:
        """All that `check` goes by, for `take_state` of another process; always as many numbers."""
        numbers = (float(self.saturated), float(self.batch_rows), self._rows_per_s, self.delivery_seconds)
        return [*numbers, *self.margins.learned, *self._profile.table]

    def take_state(self, state: Sequence[float]) -> None:
        """Go by what `state` of another's told; zeros are from one that has told nothing yet."""
        if not state[1]:
            return
        self.saturated = bool(state[0])
        self.batch_rows = int(state[1])
        self._rows_per_s, self.delivery_seconds = state[2:4]
        self.margins.learned = list(state[4 : 4 + HORIZONS])
        self._profile.table = list(state[4 + HORIZONS : 4 + HORIZONS + len(self._buckets)])


def passed_deadline(seconds: float) -> DeadlineError:
    """What to tell a request whose deadline passed so long ago."""
    return DeadlineError(f"the deadline passed {1000 * seconds:.1f} ms ago; allow more time")
