"""What becomes of a lane whose backend call never ends: its batch fails, and another instance takes its place.

A thread can't be ended from outside. So a lane that hangs is given up with its thread, and whatever memory the call
holds is lost. Should the call return after all, its result is thrown away, and the lane works again unless another has
taken its place.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fuseline.serve.batching.lanes import LOST_AFTER, Infer, Lane
from fuseline.serve.batching.requests import Batch
from fuseline.serve.errors import BackendError

FIRST_CALL_TIMES = 10.0
"""Multiple of the bound for a bucket that was never measured: the first call of one may pay for set-up."""

LOOKS = 4
"""Looks at the running batches within the bound. A look that comes late by as long as the time between two says that
the process was stopped, or starved of CPU, and so were its lanes: their time counts from then on."""

OPENING_TIMES = 12.0
"""Multiple of the bound after which an instance that is being opened counts as one that never will be."""

MOST_SPARES = 4
"""Largest number of instances that take the place of lanes of one model: whatever makes each hang makes all do so, and
the memory of each is lost."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """How a batcher notices that a batch never ends, and what it does about its lane."""

    timeout_s: float
    """Seconds of one backend call after which it counts as one that never ends, unless its bucket's measured time is
    above a part of that: see `bound_s`."""
    open_spare: Callable[[], Infer] | None = None
    """Opens, in a thread of its own, one more instance of the backend that can take a lane's place; it may take long,
    and raise. None: no lane is replaced."""

    def bound_s(self, lane: Lane, batch: Batch) -> float:
        """Return the seconds after which `batch` counts as one that never ends."""
        timeout_s = self.timeout_s if lane.profile.is_measured(batch.bucket) else FIRST_CALL_TIMES * self.timeout_s
        return max(timeout_s, LOST_AFTER * lane.profile.batch_seconds(batch.bucket))


class LaneRecovery:
    """Watches the lanes of one batcher, on its event loop.

    Nothing is scheduled while no lane works.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        lanes: Callable[[], list[Lane]],
        clock: Callable[[], float],
        run_aside: Callable[[Callable[[], None]], object],
        settle: Callable[[Lane], None],
        join: Callable[[Lane, Infer | None], None],
        give_up: Callable[[], None],
    ) -> None:
        """Watch `lanes()`, with the one that computes alone among them.

        Args:
            watch: says what counts as a call that never ends.
            lanes: returns the lanes as they are now.
            clock: the batcher's.
            run_aside: makes a call in a thread of its own, whose end nobody waits for.
            settle: settles the requests of a lane's batch, whose outcome is an error then.
            join: lets a lane that was lost work again, by another instance if one is given.
            give_up: is called when no lane is left and none will be.
        """
        self._watch = watch
        self._lanes = lanes
        self._clock = clock
        self._run_aside = run_aside
        self._settle = settle
        self._join = join
        self._give_up = give_up
        self.hung_calls = 0
        """Number of calls that were given up and have not returned."""
        self._spares = 0
        self._look_s = watch.timeout_s / LOOKS
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Since when the process has been running without a pause.
        self._awake_since = clock()
        # Lost lanes for which an instance is being opened, and those whose call has returned meanwhile.
        self._opening: dict[Lane, asyncio.TimerHandle] = {}
        self._returned: set[Lane] = set()

    @property
    def is_opening(self) -> bool:
        """Whether an instance is being opened that will take a lane's place."""
        return bool(self._opening)

    def began(self) -> None:
        """Watch a batch that a lane has just begun."""
        if self._timer is None:
            self._wait()

    def came_back(self, lane: Lane) -> None:
        """Let a lane that was lost work again, as its call has returned, unless another takes its place."""
        self.hung_calls -= 1
        if lane in self._opening:
            self._returned.add(lane)
        elif lane.lost and lane in self._lanes():
            _log.warning("a backend call that was given up has returned; its result is dropped, its lane works again")
            self._join(lane, None)

    def _wait(self) -> None:
        self._due = self._clock() + self._look_s
        # A timer that held its batcher would keep one that was dropped.
        self._timer = asyncio.get_running_loop().call_later(self._look_s, _look, weakref.ref(self))

    def look(self) -> None:
        """Give up the lanes whose batches have taken too long; look again later if any works."""
        self._timer = None
        loop, now = asyncio.get_running_loop(), self._clock()
        if now - self._due >= self._look_s:
            self._awake_since = now
        working = False
        for lane in self._lanes():
            if (batch := lane.running) is None:
                continue
            working = True
            if now - max(batch.started, self._awake_since) > self._watch.bound_s(lane, batch):
                # One that has ended by now is settled first.
                loop.call_soon(self._lose, lane, batch, now)
        if working and self._timer is None:
            self._wait()

    def _lose(self, lane: Lane, batch: Batch, now: float) -> None:
        if lane.running is not batch:
            return
        lane.lost = True
        self.hung_calls += 1
        seconds, expected = now - batch.started, self._watch.bound_s(lane, batch)
        batch.compute_seconds = seconds
        batch.outcome = BackendError(
            f"the backend has not returned from a batch of {len(batch.rows)} rows for {seconds:.1f} s, at most "
            f"{expected:.1f} were expected; its requests fail, and its lane is given up; retry the request"
        )
        _log.error("%s", batch.outcome)
        self._settle(lane)
        if lane not in self._lanes():
            return
        if self._watch.open_spare is not None and self._spares < MOST_SPARES:
            self._open(lane, self._watch.open_spare)
        else:
            _log.error("the lane is not replaced: %s", "its backend can't be" if self._spares == 0 else "too many were")
            self._give_up_if_none_is_left()

    def _open(self, lane: Lane, open_spare: Callable[[], Infer]) -> None:
        self._spares += 1
        loop = asyncio.get_running_loop()

        def open_it() -> None:
            try:
                opened: Infer | BaseException = open_spare()
            # Whatever it raises, the lane's fate is to be decided.
            except BaseException as error:  # noqa: BLE001
                opened = error
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._opened, lane, opened)

        seconds = OPENING_TIMES * self._watch.timeout_s
        self._opening[lane] = loop.call_later(seconds, self._opened, lane, TimeoutError(f"not opened in {seconds:g} s"))
        self._run_aside(open_it)

    def _opened(self, lane: Lane, opened: Infer | BaseException) -> None:
        if (timer := self._opening.pop(lane, None)) is not None:
            timer.cancel()
        elif not lane.lost or lane not in self._lanes():
            return
        if not isinstance(opened, BaseException):
            self._returned.discard(lane)
            _log.warning("another instance of the backend takes the place of the lane that hangs")
            self._join(lane, opened)
            return
        _log.error("the lane is not replaced: %s: %s", type(opened).__name__, opened)
        if lane in self._returned:
            self._returned.discard(lane)
            self._join(lane, None)
        else:
            self._give_up_if_none_is_left()

    def _give_up_if_none_is_left(self) -> None:
        if not self._opening and all(lane.lost for lane in self._lanes()):
            self._give_up()


def _look(recovery: "weakref.ref[LaneRecovery]") -> None:
    if (its := recovery()) is not None:
        its.look()
