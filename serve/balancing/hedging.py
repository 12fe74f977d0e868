"""How many requests may be sent a second time while the first copy is under way ("hedged").

Hedging shortens the tail of latency where single servers are slow now and then (Dean and Barroso, "The Tail at Scale",
CACM 56(2), 2013). Where all are slow, as under overload, nearly every request would be sent twice, and make it worse.
So copies are a bounded share of the requests.
"""

SHARE = 0.1
"""Copies a request, in the long run."""
_MOST = 10.0


class HedgeBudget:
    """What is left for copies. Threads may share it: it is bounded also where they overtake each other."""

    def __init__(self) -> None:
        self._left = 1.0

    def note_request(self) -> None:
        """Count a request, by a tenth of a copy."""
        self._left = min(_MOST, self._left + SHARE)

    def takes_one(self) -> bool:
        """Return whether one more copy may be sent, and count it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
