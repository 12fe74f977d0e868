"""Load generators as processes: started together, given one window of time, their findings gathered."""

import asyncio
import multiprocessing
import os
import selectors
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import uvloop

from fuseline.serve.errors import BackendError, FuselineError

L = TypeVar("L")

Window = tuple[float, float]
"""Start and end, of `time.monotonic`, which all processes of a machine share."""

_STALL_S = 120.0
_LEAD_S = 0.02


class Cue:
    """A generator's side of the agreement on when the window is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def window(self) -> Window:
        """Tell that this generator is ready, and return the window when all are; the loop runs on meanwhile."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        file = self._connection.fileno()
        loop.add_reader(file, came.set)
        self._connection.send(None)
        await came.wait()
        loop.remove_reader(file)
        # libuv leaves what it has watched non-blocking; `connection` reads and writes whole messages.
        os.set_blocking(file, True)
        window: Window = self._connection.recv()
        return window


def drive(
    work: Callable[[L, Cue], Awaitable[Any]],
    loads: Sequence[L],
    *,
    seconds: float,
    ready_s: float = 0.0,
    lead_s: float = 0.0,
    drain_s: float = 0.0,
    at_edge: Callable[[], None],
    precise: bool = False,
) -> tuple[list[Any], Window]:
    """Run `work(load, cue)` in a process for each of `loads`; return what each returned, and the window.

    Args:
        work: a coroutine function of a module, which asks `cue` for the window.
        seconds: length of the window.
        ready_s: how long a generator may work, besides waiting for the server, before it asks.
        lead_s: from when all have asked to the window's start.
        drain_s: how long a generator may go on after the window.
        at_edge: called at the start and at the end of the window.
        precise: timers of the generators' event loops fire to 0.1 ms, for somewhat more CPU; else to 1 ms.

    Raises:
        BackendError: a generator died, or the server stopped answering.
        FuselineError: one that `work` raised.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        connections = []
        for load in loads:
            ours, theirs = context.Pipe()
            process = context.Process(target=_generate, args=(theirs, work, load, precise), daemon=True)
            process.start()
            theirs.close()
            stack.callback(_end, process)
            stack.callback(ours.close)
            connections.append(ours)
        for connection in connections:
            _receive(connection, "the burn-in", ready_s)
        start = time.monotonic() + _LEAD_S + lead_s
        window = (start, start + seconds)
        for connection in connections:
            connection.send(window)
        for edge in window:
            time.sleep(max(0.0, edge - time.monotonic()))
            at_edge()
        return [_receive(connection, "the last answers", drain_s) for connection in connections], window


def shares_of(total: int, processes: int) -> list[int]:
    """`total` dealt over `processes` as evenly as can be; those that would get nothing are left out."""
    shares = [total // processes + (number < total % processes) for number in range(processes)]
    return [share for share in shares if share]


def _receive(connection: Connection, what: str, extra_s: float) -> Any:
    try:
        if connection.poll(_STALL_S + extra_s):
            received = connection.recv()
            if isinstance(received, FuselineError):
                raise received
            return received
    except (EOFError, OSError) as error:
        raise BackendError(f"a load generator died in {what}; what it said is on stderr") from error
    raise BackendError(f"the server gave no answer for {_STALL_S:.0f} s in {what}")


def _end(process: Any) -> None:
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()


def _generate(connection: Connection, work: Callable[[Any, Cue], Any], load: Any, precise: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=_select_loop if precise else uvloop.new_event_loop) as runner:
        try:
            found = runner.run(work(load, Cue(connection)))
        except FuselineError as error:
            found = error
        connection.send(found)


def _select_loop() -> asyncio.AbstractEventLoop:
    """select(2) waits for microseconds, epoll(7) and libuv for milliseconds. Few files, with low numbers."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
