"""Decides whether a request is admitted, and how large batches are, from plain numbers: no queue and no futures.

The time of a request's answer is predicted from measurements: the rest of the running batch, the rows ahead, the
request's own batch, and handing the answers out. How far predictions miss is measured too, and a deadline has to lie
later than predicted by that margin. Computing only what will be in time is Clockwork's idea (Gujarati et al., OSDI
2020), dropping early what won't be is Nexus's (Shen et al., SOSP 2019).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.predictions import HORIZONS, Margins, PredictedAnswer
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.row_rate import RowRate
from fuseline.serve.batching.standing import Standing, room_for
from fuseline.serve.errors import DeadlineError, OverloadedError

PATIENT_SHARE = 0.5
"""Share of the time that callers have, beyond one batch, that a batch may take: see `Admission._chosen_rows`."""

ABOUT_AS_GOOD = 0.95
"""Share of the best score from which on another choice counts as equally good: the difference is taken for noise."""

BUDGET_RECOVERY = 0.02
"""Share of the difference by which one caller with more time moves the time that callers are taken to have."""

BUDGET_SECONDS = 2.0
"""Seconds without a caller who has a deadline after which callers are taken to have any time."""

AS_FAST = 0.97
"""Share of a batch's rows a second from which on a smaller one loses nothing."""

MOST_STRAY_ROWS = 0.1
"""Rows a second of one kind of requests below which they are none: a rate decays but is never 0."""

MIXED_SECONDS = 1.0
"""Seconds without a small request that went before rows of a larger one, after which batches may be large again."""

DELIVERY_RATE = 0.1
"""Weight of the newest batch in the time that handing answers out takes."""


class Prediction(NamedTuple):
    """What is predicted for a request's rows, in seconds from now."""

    starts: float
    """Seconds until a batch takes the first row."""
    answered: float
    """Seconds until the answer to all rows is handed out."""


PREDICT_EVERY = 8
"""Number of requests of which one is predicted, where they have no deadline, less than a batch ahead, and are admitted
in any case: a prediction costs a hundredth of all that is done for a request."""


class Ready(NamedTuple):
    """When the rows of a request that have to be decoded first will be there."""

    seconds: float
    """Seconds from now."""
    alone_seconds: float
    """Seconds that it would take if no other request were ahead."""


AT_ONCE = Ready(0.0, 0.0)


class Reservation:
    """Room in the queue for the rows of an admitted request that are yet to be decoded."""

    __slots__ = ("_on_release", "_row_count", "predicted")

    def __init__(self, row_count: int, predicted: PredictedAnswer, *, on_release: Callable[[int], None]) -> None:
        """Reserve `row_count` rows; `on_release` is called with that number, once, on release."""
        self._row_count = row_count
        self._on_release = on_release
        self.predicted = predicted

    def release(self) -> None:
        """Release the room. Calling it again does nothing."""
        row_count, self._row_count = self._row_count, 0
        if row_count:
            self._on_release(row_count)


class Load(NamedTuple):
    """What is ahead of a new request."""

    waiting_rows: int
    """Number of rows that are queued or reserved."""
    running_rows: int
    """Number of rows that all lanes compute."""
    lane_seconds: tuple[float, ...]
    """Seconds until each lane has ended its batch, ascending; 0: it has none."""
    may_probe: bool = False
    """Whether nothing runs or waits, and nothing has for a while: predictions are old then, so a request may be
    admitted to test them."""
    standing: Standing | None = None
    """How the request stands towards those that wait; None: all of their rows start before its own."""


class Admission:
    """Admits requests by predicting their answers, and learns from misses. All but `learn` take constant time."""

    def __init__(self, profile: BatchProfile, policy: BatchPolicy, alone: BatchProfile | None = None) -> None:
        """Begin with nothing learned; `profile` has the same buckets as `policy`.

        `alone` is the profile of batches that have all cores to themselves, with the policy's `alone_buckets`.
        """
        self._profile = profile
        self._alone = alone
        self._alone_rows = policy.alone_rows
        self._lanes = policy.lanes
        self._spreads = not policy.lanes_share_device
        self.idle_lanes = (0.0,) * policy.lanes
        """The `Load.lane_seconds` of an idle backend."""
        self._max_queue_rows = policy.max_queue_rows
        self._max_queue_seconds = policy.max_queue_ms / 1000
        self._buckets = policy.buckets
        self.small_rows = policy.small_batch_rows
        """Largest number of rows of a small request, and of a batch while that costs nothing."""
        self.saturated = False
        """Whether more rows come than the backend computes, or did a moment ago."""
        self.mixed = False
        """Whether small requests and larger ones come side by side, or did a moment ago."""
        self._budget = math.inf
        self._budget_noted_at = -math.inf
        self._rate, self._passable_rate = RowRate(), RowRate()
        self.margins = Margins()
        self.delivery_seconds = 0.0
        """Seconds from the end of a batch until its answers are handed out."""
        self.batch_rows = policy.buckets[-1]
        """Largest number of rows that a batch should have at present."""
        self.most_rows = policy.buckets[-1]
        """Largest number of rows that a batch may have: a latency target may set it lower than the largest bucket."""
        self._unpredicted = 0
        self.free_rows = self._free_rows()
        """Number of rows that wait no longer than `max_queue_ms`, whatever runs."""

    def check(
        self, load: Load, rows: int, deadline: float | None, now: float, ready: Ready = AT_ONCE
    ) -> PredictedAnswer:
        """Admit a request of `rows`, and return what is predicted for it.

        Raises:
            OverloadedError: there is no room for so many rows, or too many are ahead of them.
            DeadlineError: the deadline has passed or, by the measured time of batches, can't be met by an idle server.
        """
        standing = load.standing or Standing(load.waiting_rows, load.waiting_rows)
        last = standing.last
        starts, answered = self.predict(standing.first, rows, load.lane_seconds, ready.seconds, last)
        answered += self._passing_seconds(standing, answered)
        most_rows = room_for(standing, load.waiting_rows, rows, self._max_queue_rows)
        if load.waiting_rows + rows > most_rows:
            raise self._too_many(load.waiting_rows, rows, most_rows, answered)
        if deadline is None:
            if starts - ready.alone_seconds > self._max_queue_seconds:
                raise OverloadedError(
                    f"{last + load.running_rows} rows are ahead, which by recent batches takes "
                    f"{1000 * starts:.0f} ms, and a request without a deadline waits "
                    f"{1000 * self._max_queue_seconds:.0f} ms at most; retry later",
                    starts - self._max_queue_seconds,
                )
            return PredictedAnswer(now + answered, answered)
        if (left := deadline - now) <= 0:
            raise passed_deadline(-left)
        surely = answered + self.margins.of(answered)
        if surely > left and not load.may_probe:
            alone = self.predict(0, rows, self.idle_lanes, ready.alone_seconds).answered
            alone += self.margins.of(alone)
            if alone > left:
                raise DeadlineError(
                    f"the deadline is in {1000 * left:.1f} ms, but going by recent batches an idle server takes "
                    f"{1000 * alone:.1f} ms for {rows} rows; allow more time"
                )
            self._note_caller(left, now)
            raise OverloadedError(
                f"the deadline is in {1000 * left:.1f} ms, but going by recent batches the answer takes "
                f"{1000 * surely:.1f} ms with {last + load.running_rows} rows ahead; allow more time or "
                "retry later",
                surely - left,
            )
        self._note_caller(left, now)
        return PredictedAnswer(now + answered, answered, is_probe=surely > left)

    def needs_prediction(self) -> bool:
        """Return whether the next request that fits into `free_rows` is predicted: then margins are learned from it."""
        self._unpredicted = (self._unpredicted + 1) % PREDICT_EVERY
        return self._unpredicted == 1

    def _free_rows(self) -> int:
        is_quick = 2 * self._profile.batch_seconds(self._buckets[-1]) <= self._max_queue_seconds
        return min(self.batch_rows, self._max_queue_rows) if is_quick else 0

    def backpressure(self, load: Load) -> Literal["rows", "time"] | None:
        """Return why a caller that can wait should hold back; None: it need not.

        "time": half of the longest wait is predicted; "rows": the next batch is full already.
        """
        if self.predict(load.waiting_rows, 1, load.lane_seconds).starts > self._max_queue_seconds / 2:
            return "time"
        return "rows" if load.waiting_rows >= self.next_batch_rows(load.waiting_rows) else None

    def _passing_seconds(self, standing: Standing, seconds: float) -> float:
        """Return how much later an answer predicted in `seconds` comes for those who come meanwhile and pass.

        Requests of other kinds and clients are taken to come as they did of late.
        """
        row_seconds = self._profile.batch_seconds(self.batch_rows) / self.batch_rows / self._lanes

        def passing(most: int, per_s: float) -> float:
            if not most or per_s < MOST_STRAY_ROWS:
                return 0.0
            return min(float(most), per_s * seconds / (1 - min(per_s * row_seconds, 0.9)))

        all_per_s, passable_per_s = self._rate.per_s, self._passable_rate.per_s
        kinds = passing(standing.later_of_kinds, all_per_s - passable_per_s if standing.is_passable else passable_per_s)
        clients = passing(standing.later_of_clients, all_per_s - standing.client_rows_per_s)
        return row_seconds * max(kinds, clients)

    def _too_many(self, waiting_rows: int, rows: int, most: int, answered: float) -> OverloadedError:
        if rows > (most_ever := self._max_queue_rows):
            return OverloadedError(
                f"a request of {rows} rows can never be queued, the queue's limit is {most_ever} rows; send it in parts"
            )
        total = waiting_rows + rows
        kept = "" if most == most_ever else f", beside {most_ever - most} kept free for others,"
        return OverloadedError(
            f"{waiting_rows} rows of at most {most}{kept} are queued, no room for {rows} more; retry later",
            # Before the first batch was measured nothing is predicted, and 0 stands for that.
            answered * (total - most) / total or None,
        )

    def _note_caller(self, seconds: float, now: float) -> None:
        """Note the time that a caller gave: batches are kept small enough for callers with little time."""
        self._budget_noted_at = now
        if seconds < self._budget:
            self._budget = max(seconds, 1e-6)
        elif self._budget < math.inf:
            self._budget += BUDGET_RECOVERY * (seconds - self._budget)

    def next_batch_rows(self, queued_rows: int) -> int:
        """Return the largest number of rows of the next batch that is formed from a queue of `queued_rows`.

        Until the largest bucket can be filled batches are small, if that costs nothing: see `BatchPolicy`,
        `unsaturated_rows`. From then on they are large until the queue is short, so that predictions hold; while small
        requests go before rows of larger ones they stay small, so that the former wait for a small batch.
        """
        if self.saturated or queued_rows >= self._buckets[-1]:
            return self._mixed_rows() if self.mixed else self.batch_rows
        return min(self.batch_rows, self.small_rows)

    def _mixed_rows(self) -> int:
        """Return the largest number of rows of a batch while small requests and larger ones come side by side.

        That is the smallest bucket that computes about as many rows a second as the present one, by measurement.
        """
        least = self.batch_rows / max(1e-9, self._profile.batch_seconds(self.batch_rows)) * AS_FAST
        for bucket in self._buckets:
            if self.small_rows <= bucket < self.batch_rows and bucket >= least * self._profile.batch_seconds(bucket):
                return bucket
        return self.batch_rows

    def predict(
        self,
        rows_ahead: int,
        rows: int,
        lane_seconds: Sequence[float],
        ready_seconds: float = 0.0,
        rows_before_last: int | None = None,
    ) -> Prediction:
        """Predict when `rows` behind `rows_ahead` in the queue start and are answered.

        `rows_before_last` are others that start before the last of them; None: `rows_ahead`.
        The lanes are free in `lane_seconds`, ascending, and the rows are there in `ready_seconds`. If the latter takes
        longest, batches have begun by then, and the first of them ends in a part of its time on average.
        """
        total, lanes = (rows_ahead if rows_before_last is None else rows_before_last) + rows, len(lane_seconds)
        busy = lane_seconds[-1] > 0
        if self._alone is not None and not busy and total <= self._alone_rows:
            return Prediction(ready_seconds, ready_seconds + self._alone.batch_seconds(total) + self.delivery_seconds)
        size = self.next_batch_rows(total)
        full_seconds = self._profile.batch_seconds(size)
        if not busy and self._spreads:
            size = min(size, -(-total // lanes))
        # Lanes take batches in turn, whichever is free first; all batches but the last are full.
        batches, batches_ahead = (total - 1) // size, rows_ahead // size
        starts = lane_seconds[batches_ahead % lanes] + batches_ahead // lanes * full_seconds
        wait = lane_seconds[batches % lanes] + batches // lanes * full_seconds
        last: float = total - batches * size
        if wait and last < size:
            # Rows that come meanwhile share the last batch.
            last = min(size, last + self._rate.per_s * wait)
        seconds = self._seconds_of(last)
        if ready_seconds > wait:
            starts = wait = ready_seconds + (full_seconds / (lanes + 1) if rows_ahead or busy else 0.0)
        return Prediction(starts, wait + seconds + self.delivery_seconds)

    def _seconds_of(self, rows: float) -> float:
        """Return the seconds of a batch that has `rows` rows on average."""
        whole = int(rows)
        seconds = self._profile.batch_seconds(whole)
        if (part := rows - whole) > 0:
            seconds += part * (self._profile.batch_seconds(whole + 1) - seconds)
        return seconds

    def begin_batch(
        self,
        queued_rows: int,
        admitted_rows: int,
        now: float,
        idle_lanes: int = 1,
        passed_at: float = -math.inf,
        passable_rows: int = 0,
    ) -> None:
        """Choose anew how large batches are, and learn how fast rows come.

        `admitted_rows` is the number of rows that were queued since the start and `passable_rows` that of the
        passable ones; `passed_at` is the queue's.
        """
        self.mixed = now - passed_at < MIXED_SECONDS
        if queued_rows > idle_lanes * self._buckets[-1]:
            self.saturated = True
        elif 2 * queued_rows < self._buckets[-1]:
            self.saturated = False
        if now - self._budget_noted_at > BUDGET_SECONDS:
            self._budget = math.inf
        self.batch_rows = self._chosen_rows()
        self.free_rows = self._free_rows()
        self._rate.learn(admitted_rows, now)
        self._passable_rate.learn(passable_rows, now)

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
        kept = min(self.batch_rows, self.most_rows)
        return best if self._score(kept) < ABOUT_AS_GOOD * best_score else kept

    def _score(self, bucket: int) -> float:
        if (seconds := self._profile.batch_seconds(bucket)) <= 0:
            return math.inf
        turn = seconds / self._lanes
        return bucket / seconds * min(1.0, max(0.0, PATIENT_SHARE * (self._budget - seconds) / turn))

    def learn(
        self,
        answered: Sequence[PredictedAnswer],
        now: float,
        *,
        delivery_seconds: float,
        late: Sequence[tuple[PredictedAnswer, float]] = (),
    ) -> None:
        """Learn from the predictions for the requests that one batch answered, which were handed out at `now`.

        `late` has the predictions for requests that were dropped meanwhile, with when they would have been answered.
        `delivery_seconds` is the time from the end of that batch until `now`.
        """
        self.delivery_seconds += DELIVERY_RATE * (delivery_seconds - self.delivery_seconds)
        self.margins.learn(answered, now, late)

    def state(self) -> list[float]:
        """Return the numbers that `check` goes by, for `take_state` in another process; their count never changes."""
        flags = float(self.saturated) + 2.0 * self.mixed
        rates = (self._rate.per_s, self._passable_rate.per_s)
        alone = [] if self._alone is None else self._alone.table
        numbers = (flags, float(self.batch_rows), *rates, self.delivery_seconds)
        return [*numbers, *self.margins.learned, *self._profile.table, *alone]

    def take_state(self, state: Sequence[float]) -> None:
        """Take over what `state` returned in another process; zeros, as before its first state, are ignored."""
        if not state[1]:
            return
        self.saturated, self.mixed = state[0] % 2 == 1, state[0] >= 2
        self.batch_rows = int(state[1])
        self._rate.per_s, self._passable_rate.per_s, self.delivery_seconds = state[2:5]
        start = 5 + HORIZONS
        self.margins.learned = list(state[5:start])
        end = start + len(self._buckets)
        self._profile.table = list(state[start:end])
        if self._alone is not None:
            self._alone.table = list(state[end : end + len(self._alone.table)])


def passed_deadline(seconds: float) -> DeadlineError:
    """Return the error for a request whose deadline passed `seconds` ago."""
    return DeadlineError(f"the deadline passed {1000 * seconds:.1f} ms ago; allow more time")
