"""Heeds SIGTERM, SIGINT and SIGHUP also while the event loop is blocked.

The event loop has a thread of its own, and the main thread waits for signals. A backend that is called on the loop and
hangs blocks it for ever: then a signal handler of the loop would never run, and the process could only be killed.
"""

import asyncio
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from fuseline.serve.process.event_loop import run_event_loop
from fuseline.serve.process.server_log import end_process

_GRACE_S = 3.0
"""Seconds beyond the drain's own, for the delivery of the last answers and the event loop's end."""
_LOOK_S = 1.0
"""Seconds between two looks at whether the event loop hangs."""
_ENDED = 0
"""Sent instead of a signal's number when the event loop has ended; no signal has it."""

_log = logging.getLogger(__name__)


def run_until_signal(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, int]],
    *,
    drain_timeout_s: float,
    before_exit: Callable[[], None] = lambda: None,
    hangs: Callable[[], bool] = lambda: False,
    grace_s: float = math.inf,
) -> int:
    """Run `work` on an event loop and return its exit code; its argument is set at the first signal.

    The signals are those of `stop_signals`. A second one ends the process at once, with 128 + its number. If `work`
    goes on for some seconds longer than `drain_timeout_s` after the first, the process ends with 1. Either way
    `before_exit` is called first, in this thread, while the event loop may hang. Call it in the main thread. Raises
    what `work` raises.

    Once the event loop hangs for ever, by `hangs`, which has been true for `grace_s`, the process ends with 1.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in stop_signals()}
        # The socket gets the number of each signal, whichever thread it interrupts.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            return _run(work, drain_timeout_s, before_exit, _Hang(hangs, grace_s, before_exit), reader, writer)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, int]],
    drain_timeout_s: float,
    before_exit: Callable[[], None],
    hang: "_Hang",
    numbers: socket.socket,
    writer: socket.socket,
) -> int:
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    outcome: Future[int] = Future()

    async def main() -> int:
        stop = asyncio.Event()
        running.set_result((asyncio.get_running_loop(), stop))
        return await work(stop)

    def run() -> None:
        try:
            outcome.set_result(run_event_loop(main()))
        # Any error is raised again in the main thread.
        except BaseException as error:  # noqa: BLE001
            outcome.set_exception(error)
        finally:
            running.cancel()
            writer.send(bytes([_ENDED]))

    # The thread is a daemon, as it may hang when the process has to end.
    threading.Thread(target=run, name="fuseline-loop", daemon=True).start()
    if first := hang.number_unless(numbers):
        _log.info("%s: draining for at most %g s", signal.Signals(first).name, drain_timeout_s)
        # The event loop may be ending by itself at this moment.
        with suppress(CancelledError, RuntimeError):
            loop, stop = running.result()
            loop.call_soon_threadsafe(stop.set)
        numbers.settimeout(drain_timeout_s + _GRACE_S)
        try:
            second = _next_number(numbers)
        except TimeoutError:
            _log.error("the backend hangs; answers were still owed after %g s and are given up", drain_timeout_s)
            before_exit()
            end_process(1)
        if second:
            _log.warning("second signal: exiting at once")
            before_exit()
            end_process(128 + second)
    return outcome.result()


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals at which a server drains and ends.

    SIGHUP, that of a terminal which is gone, is one of them unless it is ignored, as it is below nohup.
    """
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hangup)


class _Hang:
    """Ends the process when its event loop has hung for so long that it will for ever."""

    def __init__(self, hangs: Callable[[], bool], grace_s: float, before_exit: Callable[[], None]) -> None:
        self._hangs = hangs
        self._most_looks = grace_s / _LOOK_S
        self._before_exit = before_exit

    def number_unless(self, numbers: socket.socket) -> int:
        """Return the next number. A process that was stopped for long is looked at as often as one that was not."""
        looks = 0
        numbers.settimeout(_LOOK_S)
        while True:
            try:
                return _next_number(numbers)
            except TimeoutError:
                looks = looks + 1 if self._hangs() else 0
            if looks > self._most_looks:
                _log.error("the event loop hangs in a call of the backend: this server ends, to be started again")
                self._before_exit()
                end_process(1)


def _next_number(numbers: socket.socket) -> int:
    return numbers.recv(1)[0]
