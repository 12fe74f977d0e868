"""Decides whether a request is admitted, from plain numbers: no queue and no futures.

The time of a request's answer is predicted from measurements: the rest of the running batch, the rows ahead, the
request's own batch, and handing the answers out. How far predictions miss is measured too, and a deadline has to lie
later than predicted by that margin. Computing only what will be in time is Clockwork's idea (Gujarati et al., OSDI
2020), dropping early what won't be is Nexus's (Shen et al., SOSP 2019).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from fuseline.serve.batching.batch_size import BatchSize
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.batching.predictions import HORIZONS, Margins, PredictedAnswer
from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.row_rate import RowRate
from fuseline.serve.batching.standing import Standing, room_for
from fuseline.serve.errors import DeadlineError, OverloadedError

MOST_STRAY_ROWS = 0.1
"""Rows a second of one kind of requests below which they are none: a rate decays but is never 0."""

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
        self.size = BatchSize(profile, policy)
        """How large batches are at present."""
        self._rate, self._passable_rate = RowRate(), RowRate()
        self.margins = Margins()
        self.delivery_seconds = 0.0
        """Seconds from the end of a batch until its answers are handed out."""
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
                    f"{_rows(last + load.running_rows)} ahead take {1000 * starts:.0f} ms by recent batches, and a "
                    f"request without a deadline waits {1000 * self._max_queue_seconds:.0f} ms at most; retry later",
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
                    f"{1000 * alone:.1f} ms for {_rows(rows)}; allow more time"
                )
            self.size.note_caller(left, now)
            raise OverloadedError(
                f"the deadline is in {1000 * left:.1f} ms, but going by recent batches the answer takes "
                f"{1000 * surely:.1f} ms with {_rows(last + load.running_rows)} ahead; allow more time or "
                "retry later",
                surely - left,
            )
        self.size.note_caller(left, now)
        return PredictedAnswer(now + answered, answered, is_probe=surely > left)

    @property
    def bucket_seconds(self) -> dict[int, float]:
        """Seconds of a lane's batch in each bucket; of one that was not measured those of the next smaller, or 0."""
        return dict(zip(self._buckets, self._profile.table, strict=True))

    def needs_prediction(self) -> bool:
        """Return whether the next request that fits into `free_rows` is predicted: then margins are learned from it."""
        self._unpredicted = (self._unpredicted + 1) % PREDICT_EVERY
        return self._unpredicted == 1

    def _free_rows(self) -> int:
        is_quick = 2 * self._profile.batch_seconds(self._buckets[-1]) <= self._max_queue_seconds
        return min(self.size.rows, self._max_queue_rows) if is_quick else 0

    def backpressure(self, load: Load) -> Literal["rows", "time"] | None:
        """Return why a caller that can wait should hold back; None: it need not.

        "time": half of the longest wait is predicted; "rows": the next batch is full already.
        """
        if self.predict(load.waiting_rows, 1, load.lane_seconds).starts > self._max_queue_seconds / 2:
            return "time"
        return "rows" if load.waiting_rows >= self.size.of_next_batch(load.waiting_rows) else None

    def _passing_seconds(self, standing: Standing, seconds: float) -> float:
        """Return how much later an answer predicted in `seconds` comes for those who come meanwhile and pass.

        Requests of other kinds and clients are taken to come as they did of late.
        """
        batch_rows = self.size.rows
        row_seconds = self._profile.batch_seconds(batch_rows) / batch_rows / self._lanes

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
        size = self.size.of_next_batch(total)
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
        self.size.choose(queued_rows, now, idle_lanes, passed_at)
        self.free_rows = self._free_rows()
        self._rate.learn(admitted_rows, now)
        self._passable_rate.learn(passable_rows, now)

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
        flags = float(self.size.saturated) + 2.0 * self.size.mixed
        rates = (self._rate.per_s, self._passable_rate.per_s)
        alone = [] if self._alone is None else self._alone.table
        numbers = (flags, float(self.size.rows), *rates, self.delivery_seconds)
        return [*numbers, *self.margins.learned, *self._profile.table, *alone]

    def take_state(self, state: Sequence[float]) -> None:
        """Take over what `state` returned in another process; zeros, as before its first state, are ignored."""
        if not state[1]:
            return
        size = self.size
        size.saturated, size.mixed, size.rows = state[0] % 2 == 1, state[0] >= 2, int(state[1])
        self._rate.per_s, self._passable_rate.per_s, self.delivery_seconds = state[2:5]
        start = 5 + HORIZONS
        self.margins.learned = list(state[5:start])
        end = start + len(self._buckets)
        self._profile.table = list(state[start:end])
        if self._alone is not None:
            self._alone.table = list(state[end : end + len(self._alone.table)])


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def passed_deadline(seconds: float) -> DeadlineError:
    """Return the error for a request whose deadline passed `seconds` ago."""
    return DeadlineError(f"the deadline passed {1000 * seconds:.1f} ms ago; allow more time")
