"""An event loop whose time is simulated, and a backend that takes such time: thousands of arrivals in a second."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor


class _NoSelector(selectors.BaseSelector):
    """Waits for nothing: lets the loop's time pass instead."""

    def __init__(self, loop_time):
        self._loop_time = loop_time
        self._real = selectors.DefaultSelector()

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("everything waits and nothing is due: the simulation is stuck")
        self._loop_time.now += max(0.0, timeout)
        return []

    def register(self, *args, **kwargs):
        return self._real.register(*args, **kwargs)

    def unregister(self, *args, **kwargs):
        return self._real.unregister(*args, **kwargs)

    def modify(self, *args, **kwargs):
        return self._real.modify(*args, **kwargs)

    def get_map(self):
        return self._real.get_map()

    def close(self):
        self._real.close()


class _Now:
    now = 0.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` moves only when nothing is left to do at the present time.

    What a backend's thread does happens at once, but takes effect when its time has passed: see `VirtualExecutor`.
    """

    def __init__(self):
        self._virtual = _Now()
        self.busy_until = None
        super().__init__(_NoSelector(self._virtual))
        # Timers that are due within the clock's resolution are due.
        self._clock_resolution = 1e-9

    def time(self):
        return self._virtual.now

    def clock(self):
        """Seconds, for the batcher: within a call of the backend, ahead of the loop's."""
        return self._virtual.now if self.busy_until is None else self.busy_until

    def call_soon_threadsafe(self, callback, *args, context=None):
        if self.busy_until is None:
            return super().call_soon(callback, *args, context=context)
        return self.call_at(self.busy_until, callback, *args, context=context)


class VirtualExecutor(Executor):
    """Makes a call at once; `take` within it says how long it lasts, and its end is told so much later."""

    def __init__(self, loop: VirtualLoop):
        self._loop = loop

    def submit(self, call, *args):
        self._loop.busy_until = self._loop.time()
        try:
            call(*args)
        finally:
            self._loop.busy_until = None

    def take(self, seconds):
        self._loop.busy_until += seconds


def run_in_virtual_time(main: Callable):
    """`main(loop)` is a coroutine function; return what it returns."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))
