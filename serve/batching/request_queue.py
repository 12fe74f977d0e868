"""The requests that wait for a batch, in the order of their admission."""

import math
from collections import OrderedDict
from collections.abc import Iterator

from fuseline.serve.batching.requests import Batch, Request, Row
from fuseline.serve.errors import DeadlineError


class RequestQueue:
    """Requests of which at least one row is in no batch yet; iterating goes from the oldest to the newest."""

    __slots__ = ("_requests", "admitted_rows", "earliest_deadline", "rows")

    def __init__(self) -> None:
        self._requests: OrderedDict[Request, None] = OrderedDict()
        self.rows = 0
        """Number of waiting rows of all requests; 0 when there are none."""
        self.admitted_rows = 0
        """Number of rows that were ever added."""
        self.earliest_deadline = math.inf
        """Earliest deadline of all requests. It may lie too early after some have left, never too late."""

    def __len__(self) -> int:
        """Return the number of requests, which any thread may ask for."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        self.earliest_deadline = min(self.earliest_deadline, request.deadline)
        self._requests[request] = None
        self.rows += request.row_count
        self.admitted_rows += request.row_count

    def remove(self, request: Request) -> None:
        """Take out the rest of a request, if any of its rows are left."""
        if request in self._requests:
            del self._requests[request]
            self.rows -= len(request.rows) - request.taken
            request.rows = ()

    def drop_expired(self, now: float) -> None:
        """Take out, and fail with `DeadlineError`, the requests whose deadline has passed."""
        self.earliest_deadline = math.inf
        for request in list(self._requests):
            if request.deadline <= now:
                self.remove(request)
                waited = f"{1000 * (now - request.admitted):.1f} ms in the queue"
                request.set_exception(DeadlineError(f"the deadline passed after {waited}; allow more time"))
            else:
                self.earliest_deadline = min(self.earliest_deadline, request.deadline)

    def take_batch(self, bucket: int, now: float) -> Batch:
        """Return a batch that begins `now` with the oldest rows, at most `bucket` of them."""
        rows: list[Row] = []
        shares: list[tuple[Request, int, int]] = []
        while self._requests and len(rows) < bucket:
            request = next(iter(self._requests))
            share = request.rows[request.taken : request.taken + bucket - len(rows)]
            shares.append((request, request.taken, len(share)))
            request.taken += len(share)
            rows += share
            if request.taken == len(request.rows):
                del self._requests[request]
        self.rows -= len(rows)
        if not self._requests:
            self.earliest_deadline = math.inf
        return Batch(rows, shares, bucket, now)
