"""Lanes whose batches take simulated time: an executor and the backend's functions, for a `Batcher`."""

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.plan.draws import Draws
from fuseline.benchmarks.plan.profile import BucketSeconds
from fuseline.benchmarks.plan.virtual_time import Event, VirtualLoop, World


class _Running:
    """A batch that is being computed."""

    __slots__ = ("args", "call", "end", "idle_ratio", "lanes", "left")

    def __init__(self, left: float, idle_ratio: float, lanes: int) -> None:
        self.left = left
        self.idle_ratio = idle_ratio
        self.lanes = lanes
        self.call: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()
        self.end: Event | None = None


class VirtualLanes(Executor):
    """The lanes of one simulated server.

    A batch is computed at once and takes effect when its seconds have passed. How many that are depends on the others:
    a lane is quicker while others have nothing to do, and each bucket's `idle_ratio` says by how much.
    """

    def __init__(
        self,
        world: World,
        loop: VirtualLoop,
        lanes: int,
        buckets: tuple[BucketSeconds, ...],
        alone: tuple[BucketSeconds, ...],
        random: np.random.Generator,
    ) -> None:
        """Have `lanes` lanes, all idle; see `Profile` for `buckets` and `alone`."""
        self._world = world
        self._loop = loop
        self._lanes = lanes
        self._draws = {bucket.rows: Draws(bucket, random) for bucket in buckets}
        self._alone_draws = {bucket.rows: Draws(bucket, random) for bucket in alone}
        self._idle_ratios = {bucket.rows: bucket.idle_ratio for bucket in buckets}
        self._independent = lanes == 1 or all(bucket.idle_ratio == 1 for bucket in buckets)
        self._logits = {bucket.rows: np.zeros((bucket.rows, 1), np.float32) for bucket in buckets}
        self._running: list[_Running] = []
        self._since = 0.0
        self._submitted: _Running | None = None
        self._is_submitting = False
        self.busy_seconds = 0.0
        """Total seconds for which lanes computed; a batch that has all cores counts for each lane."""
        loop.from_thread = self._plan_end

    @property
    def infers(self) -> list[Callable[[NDArray[Any]], NDArray[np.float32]]]:
        """Functions that the lanes compute by."""
        return [partial(self._infer, self._draws, 1)] * self._lanes

    @property
    def infer_alone(self) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        """Function that computes with all cores while no lane works."""
        return partial(self._infer, self._alone_draws or self._draws, self._lanes)

    def submit(self, call: Callable[[], object], /) -> None:  # type: ignore[override]
        """Make a call of a lane's thread."""
        self._is_submitting = True
        try:
            call()
        finally:
            self._is_submitting = False
            self._loop.ahead = 0.0

    def _infer(self, draws: dict[int, Draws], lanes: int, pixels: NDArray[Any]) -> NDArray[np.float32]:
        rows = len(pixels)
        seconds = draws[rows].next()
        if self._is_submitting:
            self._loop.ahead = self._world.now + seconds
            self._submitted = _Running(seconds, 1.0 if lanes > 1 else self._idle_ratios[rows], lanes)
        else:
            # On the event loop, where nothing else happens meanwhile.
            self.busy_seconds += seconds
            self._loop.ahead = self._loop.busy_until = max(self._loop.busy_until, self._world.now) + seconds
        return self._logits[rows]

    def _plan_end(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        batch, self._submitted = self._submitted, None
        assert batch is not None
        batch.call, batch.args = call, args
        if self._independent or batch.lanes > 1:
            self.busy_seconds += batch.lanes * batch.left
            self._world.at(self._world.now + batch.left, Event(self._loop, call, args))
            return
        self._advance()
        self._running.append(batch)
        self._plan_ends()

    def _advance(self) -> None:
        """Take what was computed since the number of working lanes last changed off what is left of each batch."""
        running, now = self._running, self._world.now
        if running:
            passed = now - self._since
            self.busy_seconds += passed * len(running)
            for batch in running:
                batch.left -= passed / self._slowness(batch)
        self._since = now

    def _plan_ends(self) -> None:
        now = self._world.now
        for batch in self._running:
            if batch.end is not None:
                batch.end.cancel()
            ends = now + max(0.0, batch.left) * self._slowness(batch)
            batch.end = self._world.at(ends, Event(None, self._end, (batch,)))

    def _slowness(self, batch: _Running) -> float:
        """Return by how much longer a batch takes with so many lanes at work, than with all of them."""
        others = (len(self._running) - 1) / (self._lanes - 1)
        return batch.idle_ratio + (1 - batch.idle_ratio) * others

    def _end(self, batch: _Running) -> None:
        if self._loop.is_lost:
            return
        self._advance()
        self._running.remove(batch)
        self._plan_ends()
        assert batch.call is not None
        self._loop.call_soon(batch.call, *batch.args)
