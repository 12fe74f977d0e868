"""Event loops on simulated time: what `Batcher` asks of an event loop, and nothing more.

Time moves only from one event to the next, so a second takes as long as its events take. Several servers are simulated
side by side, each with an event loop of its own that does one thing at a time: `VirtualLoop`.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from fuseline.serve.process.event_loop import call_after_turns


class Event:
    """A call that will be made, unless it is cancelled; what asyncio calls a handle."""

    __slots__ = ("args", "call", "ends_work", "loop")

    def __init__(
        self, loop: "VirtualLoop | None", call: Callable[..., object], args: tuple[Any, ...], ends_work: bool
    ) -> None:
        """`loop` is the one on which the call is made; None: it isn't a server's.

        `ends_work` says that the call's turn has come by its time: it waits for nothing else that the loop takes up.
        """
        self.loop = loop
        self.ends_work = ends_work
        self.call: Callable[..., object] | None = call
        self.args = args

    def cancel(self) -> None:
        """Make no call."""
        self.call = None


class Stream(NamedTuple):
    """Calls that are known beforehand."""

    times: Sequence[float]
    """When each is made, ascending."""
    call: Callable[[int], object]
    """Is given the number of the call, from 0 on."""


class World:
    """The time that all simulated servers share, and what is due when."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self.ready: deque[Event] = deque()
        """Calls that are due now."""
        self.current: VirtualLoop | None = None
        """The loop whose calls are being made."""
        self._due: list[tuple[float, int, Event]] = []
        # Events of the same time come in the order in which they were planned.
        self._planned = 0

    def at(self, when: float, event: Event) -> Event:
        """Plan `event` for the time `when`."""
        self._planned += 1
        heappush(self._due, (when, self._planned, event))
        return event

    def run(self, streams: Sequence[Stream] = ()) -> None:
        """Make every call in the order of time, until nothing is due any more.

        Calls of `streams` come before others of the same time.
        """
        due, ready = self._due, self.ready
        later = [_Head(stream) for stream in streams if stream.times]
        head = _first(later)
        before = asyncio._get_running_loop()
        try:
            now = self.now
            while True:
                # All that come at one time come before anything else happens.
                if head.time > now:
                    while ready:
                        event = ready.popleft()
                        if (call := event.call) is None:
                            continue
                        if (loop := event.loop) is not None:
                            if loop.is_lost:
                                continue
                            if loop.busy_until > now and not event.ends_work:
                                # It comes after what the loop has taken up, and before what it takes up later.
                                event.ends_work = True
                                self.at(loop.busy_until, event)
                                continue
                            if self.current is not loop:
                                loop.enter()
                        call(*event.args)
                    if due and due[0][0] < head.time:
                        now, _, event = heappop(due)
                        self.now = now
                        ready.append(event)
                        continue
                if head.time == math.inf:
                    return
                self.now = now = max(now, head.time)
                number = head.number
                head.advance()
                head.call(number)
                if len(later) > 1:
                    head = _first(later)
        finally:
            self.current = None
            asyncio._set_running_loop(before)


class _Head:
    """How far the calls of a stream have been made."""

    __slots__ = ("_times", "call", "number", "time")

    def __init__(self, stream: Stream) -> None:
        self._times = stream.times
        self.call = stream.call
        self.number = 0
        self.time = stream.times[0] if stream.times else math.inf

    def advance(self) -> None:
        """Go to the next call; after the last one its time is infinite."""
        self.number += 1
        self.time = self._times[self.number] if self.number < len(self._times) else math.inf


def _first(heads: Sequence[_Head]) -> _Head:
    return min(heads, key=lambda head: head.time) if heads else _Head(Stream((), _no_call))


def _no_call(number: int) -> None:
    raise AssertionError(f"call {number} of no stream")


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

    def enter(self) -> None:
        """Be what `asyncio.get_running_loop` returns from now on."""
        if self._world.current is not self:
            asyncio._set_running_loop(self)  # type: ignore[arg-type]
            self._world.current = self

    def time(self) -> float:
        """Return the time in seconds."""
        return self._world.now

    def clock(self) -> float:
        """Return the time in seconds as the batcher's code sees it: within a call of the backend ahead of others."""
        now = self._world.now
        # A call of max takes twice as long, and this is called for each request and each batch.
        return self.ahead if self.ahead > now else now  # noqa: FURB136

    def call_soon(self, call: Callable[..., object], *args: Any, context: object = None) -> Event:  # noqa: ARG002
        """Make a call once the loop has nothing else to do that was there before."""
        if call is call_after_turns:
            # Turns take no time here, so the last of them is as good as the first.
            call, args = args[1], ()
        event = Event(self, call, args, False)
        self._world.ready.append(event)
        return event

    def call_soon_threadsafe(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call of a backend's thread when `from_thread` says."""
        self.from_thread(call, args)

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Event:
        """Make a call in `delay` seconds."""
        return self._world.at(self._world.now + delay, Event(self, call, args, False))

    def get_debug(self) -> bool:
        """Return False: futures ask."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Raise what a future would only log: a failed request of which nobody heard."""
        raise AssertionError(context)


def _no_thread(call: Callable[..., object], args: tuple[Any, ...]) -> None:
    raise AssertionError(f"a thread that isn't simulated has {call} called with {args}")
