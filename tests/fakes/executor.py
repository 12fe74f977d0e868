"""An executor whose calls are made when a test says so."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any


class ManualExecutor(Executor):
    """Keeps the calls that it is given until a test has them made."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()

    def submit(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(partial(call, *args, **kwargs))

    def make_next_call(self) -> None:
        """Make the oldest call on the thread that asks for it."""
        self.calls.popleft()()
