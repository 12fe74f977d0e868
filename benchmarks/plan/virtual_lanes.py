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

ALONE_WAITS = 0.75
"""Share of the CPU time that a request takes of the cores by which a batch is delayed that has all of them: its threads
wait for each other, but some of a request's work is done by several threads at a time. Measured with ResNet-18 on 2
cores, by batches of one row with 0, 1 and 3 requests beside them."""


class _Running:
    """A batch that is being computed."""

    __slots__ = ("args", "call", "end", "ends", "idle_ratio", "is_alone", "seconds")

    def __init__(self, seconds: float, idle_ratio: float, is_alone: bool) -> None:
        self.seconds = seconds
        self.idle_ratio = idle_ratio
        self.is_alone = is_alone
        self.call: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()
        # When it ends, as things are; and the event by which that is looked at, then or before.
        self.ends = 0.0
        self.end: Event | None = None


class VirtualLanes(Executor):
    """The lanes of one simulated server.

    A batch is computed at once and takes effect when its seconds have passed. How many that are depends on the others:
    a lane is quicker while others have nothing to do, and each bucket's `idle_ratio` says by how much. And on what else
    the cores have to do: see `delay`.
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
        self._counted_at = 0.0
        self._submitted: _Running | None = None
        self._is_submitting = False
        self.busy_seconds = 0.0
        """Total seconds for which lanes computed; a batch that has all cores counts for each lane."""
        loop.from_thread = self._begin

    @property
    def infers(self) -> list[Callable[[NDArray[Any]], NDArray[np.float32]]]:
        """Functions that the lanes compute by."""
        return [partial(self._infer, self._draws, False)] * self._lanes

    @property
    def infer_alone(self) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        """Function that computes with all cores while no lane works."""
        return partial(self._infer, self._alone_draws or self._draws, True)

    def submit(self, call: Callable[[], object], /) -> None:  # type: ignore[override]
        """Make a call of a lane's thread."""
        self._is_submitting = True
        try:
            call()
        finally:
            self._is_submitting = False
            self._loop.ahead = 0.0

    @property
    def are_busy(self) -> bool:
        """Whether all lanes compute, or a batch that has all cores."""
        running = self._running
        return bool(running) and (len(running) == self._lanes or running[0].is_alone)

    def delay(self, cpu_seconds: float) -> None:
        """Take so many seconds of CPU time, as a request does, off the cores that the lanes work on.

        While a lane is idle, so is a core.
        """
        running = self._running
        if not running:
            return
        if running[0].is_alone:
            running[0].ends += ALONE_WAITS * cpu_seconds
        elif len(running) == self._lanes:
            share = cpu_seconds / self._lanes
            for batch in running:
                batch.ends += share

    def _infer(self, draws: dict[int, Draws], is_alone: bool, pixels: NDArray[Any]) -> NDArray[np.float32]:
        rows = len(pixels)
        seconds = draws[rows].next()
        if self._is_submitting:
            self._loop.ahead = self._world.now + seconds
            self._submitted = _Running(seconds, 1.0 if is_alone else self._idle_ratios[rows], is_alone)
        else:
            # On the event loop, where nothing else happens meanwhile.
            self.busy_seconds += seconds
            self._loop.ahead = self._loop.busy_until = max(self._loop.busy_until, self._world.now) + seconds
        return self._logits[rows]

    def _begin(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        batch, self._submitted = self._submitted, None
        assert batch is not None
        batch.call, batch.args = call, args
        self._count()
        running = self._running
        running.append(batch)
        if self._independent:
            batch.ends = self._world.now + batch.seconds
            self._plan(batch)
            return
        batch.ends = self._world.now + batch.seconds * self._slowness(batch, len(running))
        self._plan(batch)
        self._change_speed(len(running) - 1)

    def _count(self) -> None:
        """Count how long lanes have computed since their number last changed."""
        running, now = self._running, self._world.now
        if running:
            lanes = self._lanes if running[0].is_alone else len(running)
            self.busy_seconds += lanes * (now - self._counted_at)
        self._counted_at = now

    def _change_speed(self, before: int) -> None:
        """Let each batch end sooner or later, as another number of lanes is at work than `before`."""
        running, now = self._running, self._world.now
        for batch in running:
            left = batch.ends - now
            if batch is running[-1] and before < len(running):
                # It has just begun.
                continue
            batch.ends = now + left * self._slowness(batch, len(running)) / self._slowness(batch, before)
            assert batch.end is not None
            batch.end.cancel()
            self._plan(batch)

    def _plan(self, batch: _Running) -> None:
        batch.end = self._world.at(batch.ends, Event(None, self._look, (batch,), False))

    def _slowness(self, batch: _Running, working: int) -> float:
        """Return by how much longer a batch takes with so many lanes at work, than with all of them."""
        if batch.idle_ratio == 1:
            return 1.0
        return batch.idle_ratio + (1 - batch.idle_ratio) * (working - 1) / (self._lanes - 1)

    def _look(self, batch: _Running) -> None:
        """End a batch, unless it was delayed."""
        if self._loop.is_lost:
            return
        if batch.ends > self._world.now:
            assert batch.end is not None
            self._world.at(batch.ends, batch.end)
            return
        self._count()
        self._running.remove(batch)
        if not self._independent:
            self._change_speed(len(self._running) + 1)
        assert batch.call is not None
        if self._loop.busy_until > self._world.now:
            self._loop.call_soon(batch.call, *batch.args)
        else:
            self._loop.enter()
            batch.call(*batch.args)
