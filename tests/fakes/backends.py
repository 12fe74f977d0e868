"""Stand-ins for what a test can't hold or break in the real thing."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends.base import Backend


class SteeredBackend:
    """A real backend whose calls a test watches, holds back or replaces."""

    def __init__(self, real: Backend) -> None:
        self._real = real
        self.name = real.name
        self.precision = real.precision
        self.device = real.device
        self.buckets = real.buckets
        self.calls: list[int] = []
        """Rows of every call so far."""
        self.started = threading.Semaphore(0)
        """Released once by each call that begins."""
        self.closed = False
        self.replacement: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None
        """Called instead of the real backend, if set."""
        self._may_run = threading.Event()
        self._may_run.set()

    def hold(self) -> None:
        """Let every later call wait for `release`."""
        self._may_run.clear()

    def release(self) -> None:
        """Let calls through."""
        self._may_run.set()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls.append(len(pixels))
        self.started.release()
        if not self._may_run.wait(timeout=60):
            raise TimeoutError("the test never released the backend")
        return (self.replacement or self._real.infer)(pixels)

    def close(self) -> None:
        self.closed = True
        self._real.close()
