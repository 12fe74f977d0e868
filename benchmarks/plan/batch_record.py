"""What a server on `recorded_server` writes down, and its reader."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from fuseline.serve.errors import BackendError

BATCH = np.dtype([("bucket", "<i4"), ("rows", "<i4"), ("lane", "<i4"), ("started", "<f8"), ("ended", "<f8")])
"""One batch: rows with and without padding, its lane, -1 for all cores, and when it began and the event loop heard of
its end, of `time.monotonic`, which all processes of a machine share. A request is one of bucket 0; one of bucket -1 has
the event loop's thread for its rows."""


class CallSeconds(BaseModel):
    """Seconds of bare calls of one bucket."""

    model_config = ConfigDict(frozen=True)

    rows: int
    together: list[float]
    """While all lanes make such calls; or with all cores, where it is a batch that has them to itself."""
    single: list[float] = []
    """While one lane does, in turn with the former; empty where there is one lane."""


class BatchingFacts(BaseModel):
    """How the server batches, as it found at its start, and its bare calls."""

    model_config = ConfigDict(frozen=True)

    lanes: int
    lanes_share_device: bool
    unsaturated_rows: int | None
    inline_below_ms: float
    buckets: list[CallSeconds]
    alone: list[CallSeconds]
    measuring_seconds: float
    """Seconds that the bare calls took of the server's start."""


class BatchRecord:
    """The file that one server writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, facts: BatchingFacts) -> None:
        """Write how the server batches; the batches follow."""
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(self._file, facts.model_dump_json().encode() + b"\n")

    def add_batch(self, bucket: int, rows: int, lane: int, started: float, ended: float) -> None:
        """Write one batch, at once: whoever reads reads what has ended."""
        self._add((bucket, rows, lane, started, ended))

    def add_request(self, rows: int, now: float) -> None:
        """Write that a request was admitted."""
        self._add((0, rows, 0, now, now))

    def add_loop(self, thread: int) -> None:
        """Write which thread runs the event loop."""
        self._add((-1, thread, 0, 0.0, 0.0))

    def _add(self, values: tuple[int, int, int, float, float]) -> None:
        os.write(self._file, np.array(values, BATCH).tobytes())

    def facts(self) -> BatchingFacts:
        """Read how the server batches.

        Raises:
            BackendError: it wrote nothing.
        """
        try:
            return BatchingFacts.model_validate_json(self._read()[0])
        except ValidationError as error:
            raise BackendError("the server recorded no batches: is it one of `recorded_server`?") from error

    @property
    def loop_thread(self) -> int:
        """The event loop's thread, by its number in Linux; 0: no request came yet."""
        found = self._all()
        threads = found["rows"][found["bucket"] == -1]
        return int(threads[0]) if len(threads) else 0

    def batches(self, start: float = 0.0, end: float = float("inf")) -> NDArray[Any]:
        """Read the batches of `BATCH` that began at `start` or later and ended by `end`, in the order of their ends."""
        found = self._all()
        return found[(found["bucket"] > 0) & (found["started"] >= start) & (found["ended"] <= end)]

    def requests(self, start: float = 0.0, end: float = float("inf")) -> NDArray[Any]:
        """Read the requests that were admitted between `start` and `end`: their `rows`, and when they `started`."""
        found = self._all()
        return found[(found["bucket"] == 0) & (found["started"] >= start) & (found["ended"] <= end)]

    def _all(self) -> NDArray[Any]:
        data = self._read()[1]
        return np.frombuffer(data, BATCH, len(data) // BATCH.itemsize)

    def _read(self) -> tuple[bytes, bytes]:
        try:
            head, _, batches = self.path.read_bytes().partition(b"\n")
        except OSError as error:
            raise BackendError(f"the server recorded no batches: {error.strerror}") from error
        return head, batches
