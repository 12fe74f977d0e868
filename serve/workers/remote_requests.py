"""The backend process's end of one worker: passes its requests to the batchers, and their answers back."""

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial

from fuseline.serve.batching.admission import Reservation
from fuseline.serve.batching.batcher import BatchedRows, Batcher
from fuseline.serve.batching.predictions import PredictedAnswer
from fuseline.serve.batching.requests import Caller
from fuseline.serve.errors import BackendError, FuselineError, log_once
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.remote_batcher import error_text
from fuseline.serve.workers.wire_format import (
    DRAIN,
    SUBMIT,
    answer_record,
    caller_from,
    error_record,
    reader_of_worker_records,
    released_record,
    slots_from_tail,
)


class RemoteRequests:
    """Reads one worker's records and sends it the backend's, in one piece for each turn of the event loop.

    Every request of the worker gets one ANSWER, or one RELEASED, which an ERROR precedes unless it was cancelled.
    """

    def __init__(self, models: Mapping[int, tuple[Batcher, Arena]], send: Callable[[bytes], None]) -> None:
        """Serve `models`, by number and with the memory of each. `send` takes records to the worker, in order."""
        self._models = {
            number: _ModelRequests(number, batcher, arena, self._write) for number, (batcher, arena) in models.items()
        }
        self._send = send
        self._reader = reader_of_worker_records()
        self._out: list[bytes] = []
        self._lost = False
        self.drained: set[int] = set()
        """Numbers of the models for which the worker has no more requests."""

    def receive(self, data: bytes) -> None:
        """Read the records in `data`, which the worker has sent."""
        touched = set()
        for (kind, model_number, number, _, deadline, *predicted, priority, client), tail in self._reader.feed(data):
            model = self._models[model_number]
            if model not in touched:
                touched.add(model)
                model.read_reserved()
            if kind == SUBMIT:
                caller = caller_from(client, priority)
                model.submit(number, slots_from_tail(tail), deadline, PredictedAnswer(*predicted), caller)
            elif kind == DRAIN:
                self.drained.add(model_number)
            else:
                model.cancel(number)
        for model in touched:
            model.publish_snapshot()

    def disconnect(self) -> None:
        """Drop every request: the worker has gone."""
        self._lost = True
        for model in self._models.values():
            model.disconnect()

    def batch_finished(self, model_number: int) -> None:
        """Release the slots that only the batch of this model that has just finished read."""
        self._models[model_number].batch_finished()

    def _write(self, record: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(record)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self._lost:
            self._send(b"".join(out))


class _ModelRequests:
    """The requests of one worker for one model."""

    def __init__(self, model: int, batcher: Batcher, arena: Arena, write: Callable[[bytes], None]) -> None:
        """Pass requests to `batcher`. `model` is its number; `write` takes records to the worker."""
        self._model = model
        self._batcher = batcher
        self._arena = arena
        self._write = write
        self._pending: dict[int, asyncio.Future[BatchedRows]] = {}
        # Requests that ended while a batch had rows of theirs, by number.
        self._unreleased: dict[int, asyncio.Future[BatchedRows]] = {}
        # Number of rows that the worker had reserved when that was last read.
        self._reserved_rows = 0
        self._lost = False
        self.publish_snapshot()

    def submit(
        self, number: int, slots: list[int], deadline: float, predicted: PredictedAnswer, caller: Caller
    ) -> None:
        """Have the rows in `slots` computed; a `deadline` of infinity means that there is none."""
        shared = self._arena.rows
        rows = [shared[slot] for slot in slots]
        # The reservation holds no rows here: the worker's own count of reserved rows releases them.
        reservation = Reservation(0, predicted, on_release=self._batcher.release_rows) if predicted.at else None
        try:
            request = self._batcher.submit(
                rows, deadline=None if deadline == math.inf else deadline, reservation=reservation, caller=caller
            )
        except FuselineError as error:
            self._write(error_record(self._model, number, error_text(error, None)))
            self._write(released_record(self._model, number))
            return
        self._pending[number] = request
        request.add_done_callback(partial(self._settle, number, slots))

    def cancel(self, number: int) -> None:
        """Drop a request, unless it was answered a moment ago."""
        if (request := self._pending.get(number)) is not None:
            request.cancel()

    def disconnect(self) -> None:
        """Drop every request and reservation: the worker has gone."""
        self._lost = True
        self.read_reserved()
        for request in tuple(self._pending.values()):
            request.cancel()

    def batch_finished(self) -> None:
        """Release the slots of the requests that ended early and that no batch has rows of any more."""
        for number, request in tuple(self._unreleased.items()):
            if not self._batcher.computes(request):
                del self._unreleased[number]
                self._write(released_record(self._model, number))
        self.read_reserved()
        self.publish_snapshot()

    def read_reserved(self) -> None:
        """Let the batcher count the rows that the worker has reserved by now."""
        rows = 0 if self._lost else self._arena.reserved_rows
        self._batcher.release_rows(self._reserved_rows - rows)
        self._reserved_rows = rows

    def publish_snapshot(self) -> None:
        """Publish the snapshot that the worker needs to admit a request by itself."""
        self._arena.admission_snapshot = self._batcher.admission_snapshot()

    def _settle(self, number: int, slots: list[int], request: asyncio.Future[BatchedRows]) -> None:
        del self._pending[number]
        if self._lost:
            return
        if not request.cancelled():
            if (error := request.exception()) is None:
                batched = request.result()
                self._arena.logits[slots] = batched.logits
                self._write(
                    answer_record(
                        self._model,
                        number,
                        batch_rows=batched.batch_rows,
                        queue_ms=batched.queue_ms,
                        compute_ms=batched.compute_ms,
                    )
                )
                return
            known = error if isinstance(error, FuselineError) else BackendError(str(error))
            error_id = log_once(error) if isinstance(known, BackendError) else None
            self._write(error_record(self._model, number, error_text(known, error_id)))
        if self._batcher.computes(request):
            self._unreleased[number] = request
        else:
            self._write(released_record(self._model, number))
