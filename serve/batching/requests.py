"""Requests, each the very future of its answer, and the batches that they are computed in."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.batching.departure import BatchReason
from fuseline.serve.batching.flows import Flow
from fuseline.serve.batching.predictions import PredictedAnswer
from fuseline.serve.errors import FuselineError, RequestError

Row = NDArray[Any]
"""One image of the backend's input: pixels, or floats that were normalised."""
Logits = NDArray[np.float32]


class BatchedRows(NamedTuple):
    """The answer to one request: its logits, and where its time went."""

    logits: Logits
    """Shape (rows, classes), in the order of the request's rows."""
    queue_ms: float
    """Time from admission to the start of the batch that held the last row."""
    compute_ms: float
    """Total time of the backend calls that held its rows."""
    batch_rows: int
    """Number of rows, of all requests and before padding, in the largest of those calls."""
    shared_logits: Logits
    """Array that `logits` is part of. All requests that one batch answered whole share it, and are settled in the order
    of its rows, so that what is worked out for the whole array is worked out once."""
    first_row: int
    """Index in `shared_logits` of the first row of `logits`."""


INTERACTIVE, BULK = 1, 2
"""Levels of priority. While both wait, interactive rows go first, and one row in ten is a bulk one."""


class Caller(NamedTuple):
    """Who sends a request, as far as the queue heeds it."""

    client: str = ""
    """Name of the client, all of whose requests take turns as one: an identity, else an address."""
    priority: int = INTERACTIVE
    """Level of the request."""


ANYONE = Caller()
"""Stands for a caller of whom nothing is known."""


class Request(asyncio.Future[BatchedRows]):
    """An admitted request: the very future that its caller awaits."""

    __slots__ = (
        "admitted",
        "answered",
        "batch_rows",
        "caller",
        "compute_seconds",
        "deadline",
        "flow",
        "logits",
        "on_cancel",
        "prediction",
        "row_count",
        "rows",
        "taken",
    )

    def __init__(
        self,
        rows: tuple[Row, ...],
        *,
        deadline: float,
        admitted: float,
        prediction: PredictedAnswer,
        on_cancel: Callable[["Request"], None],
        caller: Caller = ANYONE,
    ) -> None:
        """`deadline` and `admitted` are on the batcher's clock; `on_cancel` takes a cancelled request from its queue.

        `prediction` says when the answer was expected at admission.
        """
        super().__init__()
        self.rows = rows
        self.row_count = len(rows)
        self.deadline = deadline
        self.admitted = admitted
        self.prediction = prediction
        self.on_cancel = on_cancel
        self.caller = caller
        self.flow: Flow | None = None
        self.taken = 0
        self.answered = 0
        self.logits: Logits | None = None
        self.compute_seconds = 0.0
        self.batch_rows = 0

    def cancel(self, msg: object = None) -> bool:
        """Cancel as `asyncio.Future.cancel` does; rows that are not in a batch yet never run."""
        if not super().cancel(msg):
            return False
        self.on_cancel(self)
        return True

    def add(self, logits: Logits, start: int, first_row: int, row_count: int, batch: "Batch") -> None:
        """Take a batch's logits from `start` on as those of this request's `row_count` rows from `first_row` on.

        Settle the request when none of its rows is left; its batches may end in any order.
        """
        self.compute_seconds += batch.compute_seconds
        self.batch_rows = max(self.batch_rows, len(batch.rows))
        own = logits[start : start + row_count]
        if row_count < len(self.rows):
            if self.logits is None:
                self.logits = np.empty((len(self.rows), logits.shape[1]), np.float32)
            self.logits[first_row : first_row + row_count] = own
            self.answered += row_count
            if self.answered < len(self.rows):
                return
            own = logits = self.logits
            start = 0
        queue_ms = 1000 * (batch.started - self.admitted)
        self.set_result(BatchedRows(own, queue_ms, 1000 * self.compute_seconds, self.batch_rows, logits, start))


@dataclass(slots=True)
class Batch:
    """One call of the backend."""

    rows: list[Row]
    shares: list[tuple[Request, int, int]]
    """Each request with rows in the batch, in their order, with the index of its first row here and their number."""
    bucket: int
    started: float
    admitted: float
    """Time at which the oldest of its requests was admitted."""
    compute_seconds: float = 0.0
    outcome: Logits | FuselineError | None = None
    reason: BatchReason = "idle"
    """Why it began when it did."""


def check_rows(rows: Sequence[Row], row_shape: tuple[int, ...], row_dtype: np.dtype[Any]) -> None:
    """Raise `RequestError` if there are no rows, or one is not of `row_dtype` and `row_shape`."""
    # `rows` may be one array, which has no truth value.
    if len(rows) == 0:
        raise RequestError("the request has no rows; send at least one")
    for row in rows:
        if not isinstance(row, np.ndarray) or row.dtype != row_dtype or row.shape != row_shape:
            raise RequestError(f"a row is {described(row)}, expected {row_dtype} of shape {row_shape}")


def described(value: object) -> str:
    """Return, for people, the dtype and shape of an array, or the type of any other `value`."""
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
