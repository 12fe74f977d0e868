"""The backend process's end of one worker: passes its requests to the batchers, and their answers back."""

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial

from fuseline.serve.batching.admission import Reservation
from fuseline.serve.batching.batcher import BatchedRows, Batcher
from fuseline.serve.batching.predictions import PredictedAnswer
from fuseline.serve.batching.requests import Caller
from fuseline.serve.errors import BackendLostError, FuselineError
from fuseline.serve.feed.followed import has_span, key_of
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.tracing.tracing import Tracer
from fuseline.serve.workers.arena import Arena
from fuseline.serve.workers.catalogue import ServedModel, catalogue_for
from fuseline.serve.workers.error_text import text_from_error
from fuseline.serve.workers.wire_format import (
    CANCEL,
    DRAIN,
    MEMORY,
    SUBMIT,
    TAKEN,
    TRACED,
    answer_record,
    batches_record,
    caller_from,
    catalogue_record,
    error_record,
    forgotten_record,
    reader_of_worker_records,
    released_record,
    slots_and_span_from_tail,
    slots_from_tail,
)

Open = Callable[[int, int], "tuple[Batcher, Arena] | None"]
"""Returns the batcher of a model, by its number, and the worker's memory for it, by its offset; None: the model went
before the worker was ready for it."""


class RemoteRequests:
    """Reads one worker's records and sends it the backend's, in one piece for each turn of the event loop.

    Every request of the worker gets one ANSWER, or one RELEASED, which an ERROR precedes unless it was cancelled.
    """

    def __init__(
        self,
        open_model: Open,
        send: Callable[[bytes], None],
        on_news: Callable[[], None],
        tracer: Tracer | None = None,
        feed: FeedSource | None = None,
    ) -> None:
        """Begin without models. `send` takes records to the worker, in order.

        `on_news` is called when `taken` or `may_request` says something new. `tracer` makes the spans of batches; None:
        there are none. `feed` names the batches of requests that workers follow; None: nobody does.
        """
        self._open_model = open_model
        self._models: dict[int, _ModelRequests] = {}
        self._send = send
        self._on_news = on_news
        self._tracer = tracer
        self._feed = feed
        self._reader = reader_of_worker_records()
        self._out: list[bytes] = []
        self._lost = False
        # Numbers of the models that the worker was told of, and for which it may have requests.
        self._told: set[int] = set()
        self.taken = -1
        """Generation of the latest catalogue whose models the worker sends its new requests to; -1: none."""

    def tell(self, generation: int, models: Mapping[int, ServedModel]) -> None:
        """Tell the worker what is served from now on, by number."""
        catalogue = catalogue_for(models, frozenset(self._told))
        self._told.update(models)
        self._write(catalogue_record(generation, catalogue.model_dump_json().encode()))

    def may_request(self, model_number: int) -> bool:
        """Return whether the worker knows a model, and has not said that it has no more requests for it."""
        return model_number in self._told

    def receive(self, data: bytes) -> None:
        """Read the records in `data`, which the worker has sent."""
        touched = set()
        for (kind, number_of_model, number, _, deadline, *predicted, priority, client), tail in self._reader.feed(data):
            model = self._models.get(number_of_model)
            if model is None or kind > CANCEL:
                self._receive_other(kind, number_of_model, number)
                continue
            if model not in touched:
                touched.add(model)
                model.read_reserved()
            if kind == CANCEL:
                model.cancel(number)
            else:
                caller = caller_from(client, priority)
                slots, span = (slots_from_tail(tail), b"") if kind == SUBMIT else slots_and_span_from_tail(tail)
                model.submit(number, slots, deadline, PredictedAnswer(*predicted), caller, span)
        for model in touched:
            model.publish_snapshot()

    def disconnect(self) -> None:
        """Drop every request: the worker has gone."""
        self._lost = True
        for model in self._models.values():
            model.disconnect()

    def batch_finished(self, model_number: int) -> None:
        """Release the slots that only the batch of this model that has just finished read."""
        if (model := self._models.get(model_number)) is not None:
            model.batch_finished()

    def _receive_other(self, kind: int, model_number: int, number: int) -> None:
        """Receive a record that is about no request, or about one for a model that has gone."""
        if kind == TAKEN:
            self.taken = number
            self._on_news()
        elif kind == MEMORY:
            if (opened := self._open_model(model_number, number)) is not None:
                forget = partial(self._forget, model_number)
                self._models[model_number] = _ModelRequests(
                    model_number, *opened, self._write, forget, self._tracer, self._feed
                )
        elif kind == DRAIN:
            self._told.discard(model_number)
            if (model := self._models.get(model_number)) is None:
                self._forget(model_number)
            else:
                model.drain()
            self._on_news()
        elif kind in {SUBMIT, TRACED}:
            self._write(error_record(model_number, number, text_from_error(_gone()).encode()))
            self._write(released_record(model_number, number))

    def _forget(self, model: int) -> None:
        """Use the worker's memory for a model no more."""
        self._models.pop(model, None)
        self._write(forgotten_record(model))

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

    def __init__(
        self,
        model: int,
        batcher: Batcher,
        arena: Arena,
        write: Callable[[bytes], None],
        on_forgotten: Callable[[], None],
        tracer: Tracer | None,
        feed: FeedSource | None,
    ) -> None:
        """Pass requests to `batcher`. `model` is its number; `write` takes records to the worker.

        `on_forgotten` is called once, after `drain`, when nothing uses the arena any more.
        """
        self._model = model
        self._batcher = batcher
        self._arena = arena
        self._write = write
        self._on_forgotten = on_forgotten
        self._tracer = tracer
        self._feed = feed
        self._drained = False
        self._pending: dict[int, asyncio.Future[BatchedRows]] = {}
        # Requests that ended while a batch had rows of theirs, by number.
        self._unreleased: dict[int, asyncio.Future[BatchedRows]] = {}
        # Number of rows that the worker had reserved when that was last read.
        self._reserved_rows = 0
        self._lost = False
        self.publish_snapshot()

    def submit(
        self, number: int, slots: list[int], deadline: float, predicted: PredictedAnswer, caller: Caller, span: bytes
    ) -> None:
        """Have the rows in `slots` computed; a `deadline` of infinity means that there is none.

        `span` is that of a request that the worker traces or follows; empty: it does neither.
        """
        shared = self._arena.rows
        rows = [shared[slot] for slot in slots]
        # The reservation holds no rows here: the worker's own count of reserved rows releases them.
        reservation = Reservation(0, predicted, on_release=self._batcher.release_rows) if predicted.at else None
        try:
            request = self._batcher.submit(
                rows, deadline=None if deadline == math.inf else deadline, reservation=reservation, caller=caller
            )
        except FuselineError as error:
            self._write(error_record(self._model, number, text_from_error(error).encode()))
            self._write(released_record(self._model, number))
            return
        self._pending[number] = request
        request.add_done_callback(partial(self._settle, number, slots))
        if span:
            if self._feed is not None:
                self._feed.follow(request, key_of(span))
            if self._tracer is not None and has_span(span):
                self._tracer.follow(request, span)

    def cancel(self, number: int) -> None:
        """Drop a request, unless it was answered a moment ago."""
        if (request := self._pending.get(number)) is not None:
            request.cancel()

    def drain(self) -> None:
        """Expect no more requests, and forget the worker's memory once all are settled."""
        self._drained = True
        self._forget_if_idle()

    def _forget_if_idle(self) -> None:
        if self._drained and not self._lost and not self._pending and not self._unreleased:
            self._drained = False
            self._on_forgotten()

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
        self._forget_if_idle()

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
        batches = b"" if self._tracer is None else self._tracer.batches_of(request)
        if self._lost:
            return
        if batches and not request.cancelled():
            self._write(batches_record(self._model, number, batches))
        if request.cancelled():
            self._release(number, request)
        elif (error := request.exception()) is not None:
            self._write(error_record(self._model, number, text_from_error(error).encode()))
            self._release(number, request)
        else:
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
        if self._drained:
            self._forget_if_idle()

    def _release(self, number: int, request: asyncio.Future[BatchedRows]) -> None:
        """Let the worker have back the slots of a request that ended early, once no batch reads them."""
        if self._batcher.computes(request):
            self._unreleased[number] = request
        else:
            self._write(released_record(self._model, number))


def _gone() -> BackendLostError:
    return BackendLostError("the model was unloaded while this worker did not respond; send the request again")
