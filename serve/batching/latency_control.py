"""Steers how large batches are, and how long an idle backend waits for fuller ones, by the latency that is measured.

Plain numbers, for the server and the simulator. Rungs lead from the quickest answers to the most rows a second: the
buckets each of which computes noticeably more rows a second than the one before it, then the largest of them with a
delay. In each window the 99th percentile of the time from admission to the end of the computing is compared with the
target. Above it the control goes one rung down, clearly below it one rung up. A step that turned out wrong is taken
back, and is not tried again for twice as long as the time before: so the control settles rather than swing, and still
finds out when the load has changed.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from fuseline.serve.batching.profile import BatchProfile
from fuseline.serve.batching.requests import INTERACTIVE, Batch

PERCENTILE = 0.99

WINDOW_SECONDS, WINDOW_ANSWERS = 1.0, 100
"""A window is over once it has lasted so long and has so many answers, or has lasted `LONGEST_WINDOW_SECONDS`."""

LONGEST_WINDOW_SECONDS = 10.0

CLEARLY_BELOW = 0.7
"""Share of the target below which the latency leaves room for a step up."""

NOTICEABLE = 1.03
"""Ratio of rows a second, and of latencies, from which on a difference isn't taken for noise."""

FIRST_HOLD, LONGEST_HOLD = 4, 64
"""Number of windows for which a step that turned out wrong is not tried again, at first and at most."""

IMPOSSIBLE_WINDOWS = 5
"""Number of windows in a row with no step left to try, after which the target counts as impossible."""

DELAY_SHARES = (0.0, 1 / 32, 1 / 16, 1 / 8)
"""Delays that are tried, as shares of the target."""

_BINS_PER_E = 50
"""Number of bins for each factor of e in the latency: a bin is 2 % wide."""


class Rung(NamedTuple):
    """A setting of the control."""

    most_rows: int
    """Largest number of rows of a batch."""
    delay_seconds: float
    """Longest time that an idle backend waits for a fuller batch."""


class Decision(NamedTuple):
    """What the control made of one window."""

    rung: Rung
    latency_seconds: float
    """The percentile that was measured."""
    direction: Literal["up", "down", "stay"]
    is_impossible: bool = False
    """Whether the target has just turned out to be impossible, which is told once."""


def rungs_of(profile: BatchProfile, buckets: Sequence[int], target_seconds: float) -> list[Rung]:
    """Return the settings from the quickest answers to the most rows a second."""
    sizes, best = [buckets[0]], _rows_per_s(profile, buckets[0])
    for bucket in buckets[1:]:
        if (rate := _rows_per_s(profile, bucket)) >= NOTICEABLE * best:
            sizes.append(bucket)
            best = rate
    return [*(Rung(size, 0.0) for size in sizes[:-1]), *(Rung(sizes[-1], target_seconds * s) for s in DELAY_SHARES)]


def _rows_per_s(profile: BatchProfile, bucket: int) -> float:
    # Of an unmeasured bucket nothing is known, so the larger counts as the better.
    return bucket / (profile.batch_seconds(bucket) or bucket**0.5)


class LatencyControl:
    """Takes latencies and decides once in each window."""

    def __init__(self, target_seconds: float, profile: BatchProfile, buckets: Sequence[int], now: float) -> None:
        """Begin `now` without a delay, with the batches of the most rows a second."""
        self.target_seconds = target_seconds
        self._rungs = rungs_of(profile, buckets, target_seconds)
        self._largest = buckets[-1]
        self._place = len(self._rungs) - len(DELAY_SHARES)
        self._bins: dict[int, int] = {}
        self._answers = 0
        self._rows = self._batches = 0
        self._began = now
        self._windows = 0
        # The step that the last window was to judge, and the latency before it.
        self._step: tuple[int, float] | None = None
        # Window until which a step up or down is not tried, and for how long the next time.
        self._held_until = {1: 0, -1: 0}
        self._hold = {1: FIRST_HOLD, -1: FIRST_HOLD}
        # Direction of the last step that was taken.
        self._last_step = 0
        self._hopeless = 0
        self._told = False

    @property
    def rung(self) -> Rung:
        """The present setting."""
        return self._rungs[self._place]

    def note_batch(self, batch: Batch, now: float) -> Decision | None:
        """Note the requests that `batch`, which ended at the time `now`, answered: see `note`.

        Bulk requests, and those that no batch could hold, don't count: no setting would make them quick.
        """
        latencies = [
            now - request.admitted
            for request, first_row, row_count in batch.shares
            if first_row + row_count == request.row_count <= self._largest and request.caller.priority == INTERACTIVE
        ]
        return self.note(latencies, len(batch.rows), now)

    def note(self, latencies: Sequence[float], batch_rows: int, now: float) -> Decision | None:
        """Note the latencies, in seconds, of the requests that a batch of `batch_rows` answered at the time `now`.

        Return what was decided, if that ended a window.
        """
        bins = self._bins
        for seconds in latencies:
            place = math.ceil(_BINS_PER_E * math.log(max(seconds, 1e-6)))
            bins[place] = bins.get(place, 0) + 1
        self._answers += len(latencies)
        self._rows += batch_rows
        self._batches += 1
        lasted = now - self._began
        if lasted < WINDOW_SECONDS or (self._answers < WINDOW_ANSWERS and lasted < LONGEST_WINDOW_SECONDS):
            return None
        if not self._answers:
            self._began = now
            return None
        latency, fill = self._percentile(), self._rows / self._batches
        self._bins, self._answers, self._rows, self._batches, self._began = {}, 0, 0, 0, now
        return self._decide(latency, fill)

    def _percentile(self) -> float:
        left = PERCENTILE * self._answers
        for place in sorted(self._bins):
            left -= self._bins[place]
            if left <= 0:
                return math.exp(place / _BINS_PER_E)
        raise AssertionError("fewer latencies were kept than were counted")

    def _decide(self, latency: float, fill: float) -> Decision:
        self._windows += 1
        direction = self._judged(latency)
        if not direction:
            if latency > self.target_seconds:
                direction = self._try(-1)
                if direction and self._last_step > 0:
                    # The rung above it was fine for a while only.
                    self._keep_from(1)
            elif latency < CLEARLY_BELOW * self.target_seconds and self._is_worth_more(fill):
                direction = self._try(1)
            self._step = (direction, latency) if direction else None
        self._place += direction
        self._last_step = direction or self._last_step
        is_above = latency > self.target_seconds
        self._hopeless = self._hopeless + 1 if is_above and not direction else 0
        is_impossible = self._hopeless >= IMPOSSIBLE_WINDOWS and not self._told
        self._told = self._told or is_impossible
        names: dict[int, Literal["up", "down", "stay"]] = {1: "up", -1: "down", 0: "stay"}
        return Decision(self.rung, latency, names[direction], is_impossible)

    def _judged(self, latency: float) -> int:
        """Return the step that takes the last one back, if that turned out wrong; 0: it didn't, or there was none."""
        if self._step is None:
            return 0
        (direction, before), self._step = self._step, None
        wrong = latency > self.target_seconds if direction > 0 else latency > before / NOTICEABLE
        if not wrong:
            if direction < 0:
                self._hold[direction] = FIRST_HOLD
            return 0
        # Going down helps nobody who waits for rows ahead: smaller batches may even compute fewer of them.
        self._keep_from(direction)
        return -direction

    def _keep_from(self, direction: int) -> None:
        """Don't try such a step for a while, which is twice as long the next time."""
        self._held_until[direction] = self._windows + self._hold[direction]
        self._hold[direction] = min(2 * self._hold[direction], LONGEST_HOLD)

    def _try(self, direction: int) -> int:
        is_there = 0 <= self._place + direction < len(self._rungs)
        return direction if is_there and self._windows >= self._held_until[direction] else 0

    def _is_worth_more(self, fill: float) -> bool:
        """Return whether a step up could bring more rows a second: batches fill the rung, or a delay would help it."""
        rung = self.rung
        if self._place + 1 < len(self._rungs) and self._rungs[self._place + 1].delay_seconds == 0.0:
            return fill >= 0.75 * rung.most_rows
        return 1.5 <= fill < 0.75 * rung.most_rows
