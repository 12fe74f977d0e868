"""A batcher's backend that computes when a test lets it, on rows that are numbers."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.fakes.clock import Clock

ROW_SHAPE = (2, 3)
PATIENCE_SECONDS = 30


def row(number: int) -> NDArray[np.uint8]:
    """A row that holds `number` everywhere."""
    return np.full(ROW_SHAPE, number, np.uint8)


def rows(*numbers: int) -> list[NDArray[np.uint8]]:
    return [row(number) for number in numbers]


def logits_of(*numbers: int) -> NDArray[np.float32]:
    """What `HeldBackend` answers for those rows: a function of each row alone."""
    return np.stack([[number, number**2 + 1] for number in numbers]).astype(np.float32)


class HeldBackend:
    """Computes nothing until released, unless `held` is False; each call moves `clock` on by `call_s`."""

    def __init__(self, *, held: bool = True, call_s: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        """The numbers of each call's rows."""
        self.misbehave: Callable[[NDArray[np.uint8]], object] | None = None
        """What the next call does instead, if set."""
        self.threads: set[threading.Thread] = set()
        self.clock = Clock()
        self._call_s = call_s
        self._entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._held = held

    @property
    def batch_rows(self) -> list[int]:
        """How many rows each call had."""
        return [len(batch) for batch in self.batches]

    def __call__(self, pixels: NDArray[np.uint8]) -> object:
        self.batches.append(pixels[:, 0, 0].tolist())
        self.threads.add(threading.current_thread())
        self._entered.release()
        if self._held:
            assert self._gate.acquire(timeout=PATIENCE_SECONDS)
        self.clock.now += self._call_s
        if self.misbehave is not None:
            misbehave, self.misbehave = self.misbehave, None
            return misbehave(pixels)
        assert (pixels == pixels[:, :1, :1]).all()
        return logits_of(*pixels[:, 0, 0].astype(int))

    async def entered(self) -> None:
        """Return when the backend has been given one more batch."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=PATIENCE_SECONDS)

    def release(self, batches: int = 1) -> None:
        """Let so many batches through."""
        self._gate.release(batches)

    def release_all(self) -> None:
        """Let every batch through from now on."""
        self._held = False
        self._gate.release()
