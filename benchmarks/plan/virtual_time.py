"""Event loops on simulated time: what `Batcher` asks of an event loop, and nothing more.

Time moves only from one event to the next, so a second takes as long as its events take. Several servers are simulated
side by side, each with an event loop of its own that does one thing at a time: `VirtualLoop`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Event:
    """A call that will be made, unless it is cancelled; what asyncio calls a handle."""

    __slots__ = ("args", "call", "ends_work", "loop")

    def __init__(
        self, loop: "VirtualLoop | None", call: Callable[..., object], args: tuple[Any, ...], ends_work: bool = False
    ) -> None:
        """`loop` is the one on which the call is made; None: it isn't a server's.

        `ends_work` says that the loop has done what it took up for the call, which therefore waits for nothing else.
        """
        self.loop = loop
        self.ends_work = ends_work
        self.call: Callable[..., object] | None = call
        self.args = args

    def cancel(self) -> None:
        """Make no call."""
        self.call = None


class World:
    """The time that all simulated servers share, and what is due when."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self.ready: deque[Event] = deque()
        """Calls that are due now."""
        self._due: list[tuple[float, int, Event]] = []
        # Events of the same time come in the order in which they were planned.
        self._planned = 0

    def at(self, when: float, event: Event) -> Event:
        """Plan `event` for the time `when`."""
        self._planned += 1
        heappush(self._due, (when, self._planned, event))
        return event

    def run_until(self, until: float) -> None:
        """Make every call that is due before `until` or at it, in order; then it is `until`."""
        due, ready = self._due, self.ready
        current = None
        set_running_loop = asyncio._set_running_loop
        try:
            while True:
                while ready:
                    event = ready.popleft()
                    if (call := event.call) is None:
                        continue
                    if (loop := event.loop) is not None:
                        if loop.is_lost:
                            continue
                        if loop.busy_until > self.now and not event.ends_work:
                            self.at(loop.busy_until, event)
                            continue
                        if loop is not current:
                            set_running_loop(loop)  # type: ignore[arg-type]
                            current = loop
                    call(*event.args)
                if not due or due[0][0] > until:
                    break
                self.now, _, event = heappop(due)
                ready.append(event)
        finally:
            set_running_loop(None)
        self.now = until

    @property
    def next_due(self) -> float | None:
        """When the next event is due; None: nothing is planned."""
        return self._due[0][0] if self._due else None


class VirtualLoop:
    """One server's event loop: it makes one call at a time, and some take a while.

    It is what `asyncio.get_running_loop` returns while its calls are made, and has what a batcher and a future ask of
    a loop.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.busy_until = 0.0
        """Until when what it has taken up takes it; whatever comes meanwhile waits."""
        self.ahead = 0.0
        """Time that `clock` tells although the others have not come so far."""
        self.from_thread: Callable[[Callable[..., object], tuple[Any, ...]], object] = _no_thread
        """Takes the calls that the backend's threads want to have made, with their arguments."""
        self.is_lost = False
        """Whether the server is no more: none of its calls is made."""

    def time(self) -> float:
        """Return the time in seconds."""
        return self._world.now

    def clock(self) -> float:
        """Return the time in seconds as the batcher's code sees it: within a call of the backend ahead of others."""
        now = self._world.now
        return max(now, self.ahead)

    def call_soon(self, call: Callable[..., object], *args: Any, context: object = None) -> Event:  # noqa: ARG002
        """Make a call once the loop has nothing else to do that was there before."""
        event = Event(self, call, args)
        self._world.ready.append(event)
        return event

    def call_soon_threadsafe(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call of a backend's thread when `from_thread` says."""
        self.from_thread(call, args)

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Event:
        """Make a call in `delay` seconds."""
        return self._world.at(self._world.now + delay, Event(self, call, args))

    def occupy(self, seconds: float, call: Callable[..., object], *args: Any) -> float:
        """Have the loop work for `seconds` once it is free, then make a call; return when that will be."""
        now = self._world.now
        until = (max(now, self.busy_until)) + seconds
        self.busy_until = until
        self._world.at(until, Event(self, call, args, ends_work=True))
        return until

    def get_debug(self) -> bool:
        """Return False: futures ask."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Raise what a future would only log: a failed request of which nobody heard."""
        raise AssertionError(context)


def _no_thread(call: Callable[..., object], args: tuple[Any, ...]) -> None:
    raise AssertionError(f"a thread that isn't simulated has {call} called with {args}")
