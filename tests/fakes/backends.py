"""Real backends whose calls a test watches, holds back or replaces."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend, Infer, Instance


class WrappedBackend:
    """A real backend, for subclasses whose `infer` does something else."""

    def __init__(self, real: Backend) -> None:
        self._real = real
        self.name, self.precision, self.device, self.buckets = real.name, real.precision, real.device, real.buckets
        self.half_share = real.half_share

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._real.infer(pixels)

    def open_lanes(self, count: int) -> tuple[Infer, ...]:
        return (self.infer,) * count

    def close(self) -> None:
        self._real.close()


def slow_warm_up(instances: Sequence[Instance], _: object) -> dict[int, float]:
    """Take the place of `warm_up`, and say that every batch takes 1000 s."""
    return dict.fromkeys(instances[0].buckets, 1000.0)


def opening(wrap: Callable[[Backend], Backend]) -> Callable[..., tuple[Backend, str]]:
    """Return what takes the place of `open_backend` and wraps each backend that it opens."""

    def opened(*args: Any, **kwargs: Any) -> tuple[Backend, str]:
        real, reason = open_backend(*args, **kwargs)
        return wrap(real), reason

    return opened


class SteeredBackend(WrappedBackend):
    """A real backend whose calls a test watches, holds back or replaces."""

    def __init__(self, real: Backend) -> None:
        super().__init__(real)
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
        return (self.replacement or super().infer)(pixels)

    def close(self) -> None:
        self.closed = True
        super().close()
