"""When a server gets no requests because those before failed, and how it comes back.

The semantics are those of Envoy's outlier detection (consecutive failures, a time that grows with each ejection and
shrinks while the server is well) and of gRFC A50, with two differences. A server to which there is no connection is out
at the first failure, as gRPC's own policies never pick a connection that isn't ready. And a server that comes back has
to answer one request before it gets a second one, where Envoy sends it its full share at once.
"""

import math
from enum import Enum, auto

from fuseline.serve.balancing.outcomes import Outcome

FAILURES = 3
"""Failures in a row that eject a server which can be reached."""
FIRST_OUT_S = 1.0
"""Seconds of the first ejection; each further one is twice as long."""
LONGEST_OUT_S = 30.0
FULL_S = 0.1
"""Seconds for which an overloaded server gets nothing that it could as well be spared, if it names no time itself."""
FORGIVEN_AFTER_S = 30.0
"""Seconds that a server must be in for its next ejection to be half as long; twice as many for a quarter, and so on."""


class Standing(Enum):
    """Whether a server gets requests."""

    IN = auto()
    OUT = auto()
    DUE = auto()
    """It was out and is to be asked how it is, which `Ejection.note_check` is told, before it gets any."""
    ON_TRIAL = auto()
    """One at a time, until the first was answered."""


class Ejection:
    """The standing of one server."""

    def __init__(self, *, has_check: bool = False) -> None:
        """The server is in. With `has_check` somebody asks one that was out how it is, else a request finds out."""
        self._has_check = has_check
        self._failures = 0
        self._times = 0
        self._out_from = -math.inf
        self._out_until: float | None = None
        self._in_since = 0.0
        self._wants_check = False
        self._no_room_until = 0.0
        self.is_draining = False
        """Whether the server said that it ends, and hasn't been found back since."""

    def standing(self, now: float) -> Standing:
        """Return whether the server gets requests at the time `now`, in seconds."""
        if self._out_until is None:
            return Standing.IN
        if now < self._out_until:
            return Standing.OUT
        return Standing.DUE if self._wants_check else Standing.ON_TRIAL

    def has_room(self, now: float) -> bool:
        """Return whether the time is over at which an overloaded server said that there would be room again."""
        return now >= self._no_room_until

    def note(self, outcome: Outcome, began: float, now: float, retry_after_s: float | None = None) -> bool:
        """Take in what became of a request that was sent at `began` and ended at `now`; return whether that is news.

        Requests that were sent before the last ejection say nothing new: a connection that breaks fails all requests on
        it, which is one failure. `retry_after_s` are the seconds after which an overloaded server expects to have room.
        """
        if outcome is Outcome.UNTOLD or began <= self._out_from:
            return False
        if outcome is Outcome.DRAINING:
            # It isn't sick, so that the next ejection is no longer than this one.
            self.is_draining = True
            self._leave(FIRST_OUT_S, now)
        elif outcome is Outcome.UNREACHABLE:
            self._eject(now)
        elif outcome is Outcome.FAILED:
            self._failures += 1
            if self._failures >= FAILURES or self._out_until is not None:
                self._eject(now)
        else:
            if outcome is Outcome.OVERLOADED:
                self._no_room_until = max(self._no_room_until, now + (retry_after_s or FULL_S))
            self._failures = 0
            if self._out_until is not None:
                self._out_until, self._in_since, self.is_draining = None, now, False
        return True

    def note_check(self, outcome: Outcome, now: float) -> None:
        """Take in what became of asking a server that was due; unless it answered, it is out again."""
        if outcome is Outcome.UNTOLD or self.standing(now) is not Standing.DUE:
            return
        if outcome in {Outcome.ANSWERED, Outcome.OVERLOADED}:
            self._wants_check = self.is_draining = False
        elif outcome is Outcome.DRAINING:
            self.is_draining = True
            self._leave(FIRST_OUT_S, now)
        else:
            self._eject(now)

    def _eject(self, now: float) -> None:
        if self._out_until is None:
            self._times = max(0, self._times - int((now - self._in_since) / FORGIVEN_AFTER_S))
        out_s = min(LONGEST_OUT_S, FIRST_OUT_S * 2**self._times)
        # The count stops where it changes nothing any more, so that years of an outage are forgiven like minutes of it.
        if out_s < LONGEST_OUT_S:
            self._times += 1
        self.is_draining = False
        self._leave(out_s, now)

    def _leave(self, out_s: float, now: float) -> None:
        self._out_from, self._out_until = now, now + out_s
        self._failures = 0
        self._wants_check = self._has_check
