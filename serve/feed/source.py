"""What one process tells of its batches and requests while somebody watches.

A busy server must lose nothing to it. While nobody watches, each batch and each request costs one look at a flag; else
at most `SAMPLED_PER_S` of each are told, ten times a second. Requests are a uniform sample of all. Of batches the first
of each tenth of a second are told, so that those that followed each other do so for who watches too.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.feed.reservoir import Reservoir
from fuseline.serve.process.memory import resident_bytes

TICK_S = 0.1
"""Seconds between two chunks while something happens."""
TOTALS_EVERY = 10
"""Number of ticks between two chunks that are sent also while nothing happens, with counts of all requests."""
SAMPLED_PER_S = 200.0
"""Most batches, and most requests, that a server tells of in a second."""
MOST_MESSAGE = 300
"""Characters of a refusal's message that are told."""
_LONGEST_S = 86_400.0
"""Longest time that counts as a deadline. Clients say that they have none by one that is far away, or never comes."""
_MOST_FOLLOWED = 256
_MOST_REFUSALS = 50

BATCH_FIELDS = (
    "n",
    "model",
    "version",
    "lane",
    "started",
    "finished",
    "compute",
    "rows",
    "bucket",
    "waited",
    "reason",
    "failed",
    "keys",
)
"""Members of a batch, in the order in which a chunk has them; without requests that are followed the last is absent."""

REQUEST_FIELDS = (
    "method",
    "model",
    "version",
    "code",
    "seconds",
    "queue",
    "compute",
    "batch_rows",
    "deadline",
)
"""Members of a request, in the order in which a chunk has them."""

_TOLD_MESSAGES = frozenset(("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"))
"""Codes of refusals whose message is the server's own alone; others quote what a client sent, which is no one else's
business."""


class FeedSource:
    """Gathers what happens in one process. Everything happens on one event loop.

    Times are seconds on the clock of `time.monotonic`, which all processes of a machine share.
    """

    def __init__(
        self,
        totals: Callable[[], Iterable[tuple[str, str, str, str, int]]],
        queued: Callable[[], Iterable[tuple[str, str, int]]],
        *,
        process: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tell nothing before `start`.

        Args:
            totals: returns method, model, version, code and number of the requests that were counted since the start.
            queued: returns model, version and number of the rows that wait in this process's batchers.
            process: the title of this process, among those that share the work.
            clock: tells monotonic seconds.
        """
        self.is_watched = False
        """Whether anything is told. Whoever would tell looks first."""
        self._totals = totals
        self._queued = queued
        self._process = process
        self._clock = clock
        self._send: Callable[[str], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._last_queued: list[tuple[str, str, int]] = []
        self._clear(1)

    def start(self, send: Callable[[str], None], rate: float = SAMPLED_PER_S) -> None:
        """Tell `send` what happens from now on, as JSON: at most `rate` batches and as many requests in a second."""
        self.stop()
        self._clear(max(1, round(rate * TICK_S)))
        self._send = send
        self.is_watched = True
        self._ticks = 0
        self._tick()

    def stop(self) -> None:
        """Tell nothing any more. Calling it again does nothing."""
        self.is_watched = False
        self._send = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._keys.clear()

    def note_batch(self, model: str, version: str, number: int, stats: BatchStats) -> None:
        """Tell of a batch that has just ended, the `number`th of its model. Only called while `is_watched`."""
        self._batches_seen += 1
        keys = [key for request, _, _ in stats.shares if (key := self._keys.get(request))] if self._keys else []
        # Whoever follows a request wants its batch, whatever the sample is.
        if len(self._batches) >= self._size + (_MOST_FOLLOWED if keys else 0):
            return
        row: tuple[Any, ...] = (
            number,
            model,
            version,
            stats.lane,
            round(stats.started, 6),
            round(self._clock(), 6),
            round(stats.compute_ms / 1000, 6),
            stats.rows,
            stats.bucket,
            round(stats.queue_ms / 1000, 6),
            stats.reason,
            stats.failed,
        )
        self._batches.append((*row, keys) if keys else row)

    def note_request(
        self,
        method: str,
        model: str,
        version: str,
        code: str,
        seconds: float,
        batched: BatchedRows | None,
        timeout_s: float | None,
        error: tuple[str, str] | None,
    ) -> None:
        """Tell of a request that was just answered. Only called while `is_watched`.

        `timeout_s` are the seconds that it was given; `error` has the class and the message of what it failed with.
        """
        if error is not None:
            self._note_refusal((method, model, code, error[0]), error[1])
        place = self._requests.place()
        if place is None:
            return
        queue = compute = 0.0
        rows = 0
        if batched is not None:
            queue, compute, rows = batched.queue_ms / 1000, batched.compute_ms / 1000, batched.batch_rows
        self._requests.put(
            place,
            (
                method,
                model,
                version,
                code,
                round(seconds, 6),
                round(queue, 6),
                round(compute, 6),
                rows,
                None if timeout_s is None or timeout_s > _LONGEST_S else round(timeout_s, 6),
            ),
        )

    def follow(self, pending: asyncio.Future[BatchedRows], key: str) -> None:
        """Name the batches of a request, whose answer is `pending`, by its `key`, whatever the sample is."""
        if self.is_watched and len(self._keys) < _MOST_FOLLOWED:
            self._keys[pending] = key
            # Once the batch that settles it is told of: this is called in a later turn of the event loop.
            pending.add_done_callback(self._forget)

    def note_followed(self, facts: dict[str, Any]) -> None:
        """Tell of a request that is followed, and was just answered."""
        if self.is_watched and len(self._followed) < _MOST_FOLLOWED:
            self._followed.append(facts)

    def _forget(self, pending: asyncio.Future[BatchedRows]) -> None:
        self._keys.pop(pending, None)

    def _note_refusal(self, key: tuple[str, str, str, str], message: str) -> None:
        count, _ = self._refusals.get(key, (0, ""))
        if count or len(self._refusals) < _MOST_REFUSALS:
            self._refusals[key] = count + 1, message[:MOST_MESSAGE] if key[2] in _TOLD_MESSAGES else ""

    def _clear(self, size: int) -> None:
        self._size = size
        self._batches: list[tuple[Any, ...]] = []
        self._batches_seen = 0
        self._requests: Reservoir[tuple[Any, ...]] = Reservoir(size)
        self._followed: list[dict[str, Any]] = []
        self._refusals: dict[tuple[str, str, str, str], tuple[int, str]] = {}
        self._keys: dict[asyncio.Future[BatchedRows], str] = {}

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        chunk = self._chunk(with_totals=self._ticks % TOTALS_EVERY == 0)
        self._ticks += 1
        if chunk is not None and self._send is not None:
            self._send(json.dumps(chunk, separators=(",", ":")))

    def _chunk(self, *, with_totals: bool) -> dict[str, Any] | None:
        """Return what happened since the chunk before; None: nothing."""
        chunk: dict[str, Any] = {}
        if self._batches:
            chunk["batches"], chunk["batches_seen"] = self._batches, self._batches_seen
            self._batches, self._batches_seen = [], 0
        requests, seen = self._requests.take()
        if requests:
            chunk["requests"], chunk["requests_seen"] = requests, seen
        if self._refusals:
            chunk["refusals"] = [(*key, count, message) for key, (count, message) in self._refusals.items()]
            self._refusals = {}
        if self._followed:
            chunk["followed"], self._followed = self._followed, []
        queued = list(self._queued())
        if queued and (chunk or with_totals or queued != self._last_queued):
            chunk["queued"] = queued
        self._last_queued = queued
        if with_totals:
            chunk["totals"] = list(self._totals())
            chunk["resident_bytes"] = resident_bytes()
        return {"process": self._process, "now": round(self._clock(), 6), **chunk} if chunk else None
