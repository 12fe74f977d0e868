"""The event loop of a server's process."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_SWITCH_INTERVAL_S = 0.0002

_Result = TypeVar("_Result")


def run_event_loop(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` as `asyncio.run` does, on uvloop where that is installed."""
    # While answers are serialised, the batcher's thread waits for the interpreter before it can start the next batch:
    # by default up to 5 ms, in which the backend idles.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def call_after_turns(turns: int, call: Callable[[], object]) -> None:
    """Have the running loop make `call` after `turns` turns: what it has to do by now is done then."""
    loop = asyncio.get_running_loop()
    loop.call_soon(call_after_turns, turns - 1, call) if turns else loop.call_soon(call)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes event loops of uvloop; None where that is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
