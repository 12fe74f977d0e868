"""The backend process's end of one worker: its requests go into the batchers, their answers back."""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Sequence
from functools import partial

from fuseline.serve.batching.admission import Foreseen, Promise
from fuseline.serve.batching.batcher import BatchedRows, Batcher
from fuseline.serve.errors import BackendError, FuselineError
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.remote_batcher import error_text
from fuseline.serve.workers.wire_format import (
    DRAIN,
    SUBMIT,
    answer_record,
    error_record,
    reader_of_worker_records,
    released_record,
    slots_from_tail,
)

_log = logging.getLogger(__name__)


class RemoteRequests:
    """Reads one worker's records and sends it the backend's, in one piece for each turn of the event loop.

    Every request of the worker gets one ANSWER, or RELEASED once, before which an ERROR unless it was cancelled.
    """

    def __init__(self, batchers: Sequence[Batcher], arenas: Sequence[Arena], send: Callable[[bytes], None]) -> None:
        """One arena for each batcher. `send` takes records to the worker, in order."""
        self._batchers = batchers
        self._arenas = arenas
        self._send = send
        self._reader = reader_of_worker_records()
        self._pending: dict[tuple[int, int], asyncio.Future[BatchedRows]] = {}
        self._out: list[bytes] = []
        # By model: requests that ended while a batch ran, which may read their rows.
        self._unreleased: list[list[int]] = [[] for _ in batchers]
        # By model: what the worker had promised when it was last looked at.
        self._promised_rows = [0 for _ in batchers]
        self._lost = False
        self.drained: set[int] = set()
        """Models that the worker has no more requests for."""
        for model in range(len(batchers)):
            self.tell_outlook(model)

    def receive(self, data: bytes) -> None:
        """Take in what the worker has sent."""
        models = set()
        for (kind, model, number, _, deadline, *foreseen), tail in self._reader.feed(data):
            if model not in models:
                models.add(model)
                self._count_promised(model, self._arenas[model].promised_rows)
            if kind == SUBMIT:
                self._submit(model, number, slots_from_tail(tail), deadline, Foreseen(*foreseen))
            elif kind == DRAIN:
                self.drained.add(model)
            elif (request := self._pending.get((model, number))) is not None:
                # One that was just answered is there no more.
                request.cancel()
        for model in models:
            self.tell_outlook(model)

    def lose(self) -> None:
        """Drop every request: the worker has gone."""
        self._lost = True
        for model in range(len(self._batchers)):
            self._count_promised(model, 0)
        for request in tuple(self._pending.values()):
            request.cancel()

    def batch_finished(self, model: int) -> None:
        """Give back what the batch of this model that has just finished may have read."""
        if numbers := self._unreleased[model]:
            self._unreleased[model] = []
            for number in numbers:
                self._write(released_record(model, number))
        self._count_promised(model, self._arenas[model].promised_rows)
        self.tell_outlook(model)

    def tell_outlook(self, model: int) -> None:
        """Let the worker see what it has to know to admit a request by itself."""
        self._arenas[model].outlook = self._batchers[model].outlook()

    def _count_promised(self, model: int, rows: int) -> None:
        rows = 0 if self._lost else rows
        self._batchers[model].take_back(self._promised_rows[model] - rows)
        self._promised_rows[model] = rows

    def _submit(self, model: int, number: int, slots: list[int], deadline: float, foreseen: Foreseen) -> None:
        batcher, pixels = self._batchers[model], self._arenas[model].pixels
        rows = [pixels[slot] for slot in slots]
        # Its room is given back by the worker's own count.
        promise = Promise(0, foreseen, give_back=batcher.take_back) if foreseen.at else None
        try:
            request = batcher.submit(rows, deadline=None if deadline == math.inf else deadline, promise=promise)
        except FuselineError as error:
            self._write(error_record(model, number, error_text(error, None)))
            self._write(released_record(model, number))
            return
        self._pending[model, number] = request
        request.add_done_callback(partial(self._settle, model, number, slots))

    def _settle(self, model: int, number: int, slots: list[int], request: asyncio.Future[BatchedRows]) -> None:
        del self._pending[model, number]
        if self._lost:
            return
        if not request.cancelled():
            if (error := request.exception()) is None:
                batched = request.result()
                self._arenas[model].logits[slots] = batched.logits
                self._write(
                    answer_record(
                        model,
                        number,
                        batch_rows=batched.batch_rows,
                        queue_ms=batched.queue_ms,
                        compute_ms=batched.compute_ms,
                    )
                )
                return
            known = error if isinstance(error, FuselineError) else BackendError(str(error))
            error_id = _logged(error) if isinstance(known, BackendError) else None
            self._write(error_record(model, number, error_text(known, error_id)))
        if self._batchers[model].running_rows:
            self._unreleased[model].append(number)
        else:
            self._write(released_record(model, number))

    def _write(self, record: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(record)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self._lost:
            self._send(b"".join(out))


def _logged(error: BaseException) -> str:
    """Log `error` under an id, and return the id. All requests of a failed batch share one error: it is logged once."""
    error_id: str | None = vars(error).get("fuseline_error_id")
    if error_id is None:
        vars(error)["fuseline_error_id"] = error_id = uuid.uuid4().hex[:12]
        _log.error("error %s: %s: %s", error_id, type(error).__name__, error, exc_info=error)
    return error_id
