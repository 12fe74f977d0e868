"""How many requests of a stream are read before those ahead are answered."""

from fuseline.serve.model import RowBatcher
from fuseline.serve.settings import Settings

_USUAL_IN_FLIGHT = 64

_ALWAYS = 2
"""Number of requests that a stream may have under way although the next batch is full already."""


class StreamPace:
    """The pace of one stream.

    A stream that isn't held back would fill the queue, and every other caller would wait behind it. A stream whose
    requests have timeouts of their own isn't held back: its requests are refused as those of separate calls are.
    """

    def __init__(self, settings: Settings) -> None:
        self._usual = min(max(_USUAL_IN_FLIGHT, 2 * (settings.max_batch or 0)), settings.max_queue_rows)
        self._most = settings.max_queue_rows
        self._batcher: RowBatcher | None = None
        self._has_timeouts = False

    def note(self, batcher: RowBatcher | None, *, has_timeout: bool) -> None:
        """Note which batcher the latest request was for, and whether it had a timeout."""
        self._batcher = batcher
        self._has_timeouts = has_timeout

    def has_room(self, in_flight: int, under_way: int) -> bool:
        """Return whether one more request is read while `in_flight` are, of which `under_way` have no answer yet."""
        if self._has_timeouts:
            return in_flight < self._most
        if in_flight >= self._usual:
            return False
        if self._batcher is None or not under_way:
            return True
        backpressure = self._batcher.backpressure
        return backpressure is None or (backpressure == "rows" and under_way < _ALWAYS)
