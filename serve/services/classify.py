"""fuseline.v1.Classifier: a request is validated, its images become rows, the batcher answers them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeGuard

from grpc import StatusCode
from grpc.aio import ServicerContext

from fuseline.protos.classify_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    GetModelRequest,
    GetModelResponse,
    StreamError,
)
from fuseline.protos.classify_pb2_grpc import ClassifierServicer
from fuseline.serve.batching.batcher import BatchedRows
from fuseline.serve.errors import BackendError, RequestError, ShuttingDownError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.services.answer_queue import AnswerQueue
from fuseline.serve.services.calls import Calls
from fuseline.serve.services.description import response_from_model
from fuseline.serve.services.image_rows import ImageRows, Row
from fuseline.serve.services.ordered_streams import StreamPace
from fuseline.serve.services.statuses import Status, status_from_error
from fuseline.serve.services.top_k import RankedBatch
from fuseline.serve.settings import Settings

SERVICE_NAME = "fuseline.v1.Classifier"


class ClassifyService(ClassifierServicer):
    """Answers classify.proto's methods for the models of a repository.

    Every request is answered once, in full or by one error, and one that fails has no effect on another. A request
    whose client cancels, or whose deadline passes, leaves the queue.
    """

    def __init__(
        self,
        repository: Repository,
        image_rows: ImageRows,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the one by which the batcher reads deadlines."""
        self._repository = repository
        self._image_rows = image_rows
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._calls = Calls()
        self._stream_readers: set[asyncio.Task[None]] = set()
        self._ranked: RankedBatch | None = None

    async def Classify(  # noqa: N802
        self, request: ClassifyRequest, context: ServicerContext[ClassifyRequest, ClassifyResponse]
    ) -> ClassifyResponse:
        """Classify the images of one request."""
        try:
            with self._calls:
                answer = await self._answer(request, self._deadline(context))
        except ShuttingDownError:
            answer = self._refused("Classify")
        if isinstance(answer, Status):
            await _abort(context, answer)
        return answer

    async def ClassifyStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ClassifyRequest],
        context: ServicerContext[ClassifyRequest, ClassifyResponse],
    ) -> None:
        """Classify requests as they come; each answer is written as soon as it is there.

        A bounded number of requests is under way at a time, answers that the client has yet to take included; further
        ones wait in the connection, where flow control holds the client back. After the client's last request every
        answer still comes. When the server drains, requests already read are answered, then the stream ends with
        UNAVAILABLE.
        """
        try:
            with self._calls:
                error = await self._stream(request_iterator, context)
        except ShuttingDownError:
            error = self._refused("ClassifyStream")
        if error is not None:
            await _abort(context, error)

    async def GetModel(  # noqa: N802
        self, request: GetModelRequest, context: ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe one model, and the limits of this server."""
        try:
            return response_from_model(self._repository.get(request.model), self._settings)
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            await _abort(context, status_from_error(error))

    def refuse(self) -> None:
        """Refuse what comes from now on, and read no further from streams."""
        self._calls.refuse()
        for reader in self._stream_readers:
            reader.cancel()

    async def idle(self) -> None:
        """Return, after `refuse`, once everything that came before has its answer."""
        await self._calls.idle()

    async def _stream(
        self,
        request_iterator: AsyncIterator[ClassifyRequest],
        context: ServicerContext[ClassifyRequest, ClassifyResponse],
    ) -> Status | None:
        """Answer a stream; return with what it must end, if not OK."""
        stream_deadline = self._deadline(context)
        answers: AnswerQueue[ClassifyResponse] = AnswerQueue()
        pace = StreamPace(self._settings)
        # What has no answer yet: of raw pixels the batcher's future itself, which costs no task; else a task.
        under_way: set[asyncio.Future[Any]] = set()

        def begin(call: _Call) -> None:
            deadline = call.deadline(stream_deadline)
            try:
                contents = self._checked(call)
                pending: asyncio.Future[Any]
                if _all_rows(contents):
                    pending = call.found_model.batcher.submit(contents, deadline=deadline)
                    pending.add_done_callback(partial(settle, call))
                else:
                    pending = asyncio.create_task(decode_and_answer(call, contents, deadline))
                    pending.add_done_callback(under_way.discard)
            except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
                answers.put(_stream_answer(call.request, self._failed(call, error)))
                return
            under_way.add(pending)

        def has_room(in_flight: int) -> bool:
            return pace.has_room(in_flight, len(under_way))

        def settle(call: _Call, pending: asyncio.Future[BatchedRows]) -> None:
            under_way.discard(pending)
            if pending.cancelled():
                self._count(call, StatusCode.CANCELLED)
                return
            answers.put(_stream_answer(call.request, self._answered(call, pending)))

        async def decode_and_answer(call: _Call, contents: list[Row | bytes], deadline: float | None) -> None:
            answers.put(_stream_answer(call.request, await self._decode_and_answer(call, contents, deadline)))

        async def read() -> None:
            try:
                await answers.take_room(has_room)
                async for request in request_iterator:
                    begin(call := _Call("ClassifyStream", request, self._clock()))
                    batcher = None if call.model is None else call.model.batcher
                    pace.note(batcher, has_timeout=bool(request.timeout_ms))
                    await answers.take_room(has_room)
            finally:
                # Nothing more is read, so a drain has nothing to cut short, and must not cut short the wait below.
                self._stream_readers.discard(reader)
                if under_way:
                    await asyncio.wait(under_way)

        reader = asyncio.create_task(read())
        # Not in the reader's own `finally`, which a reader cancelled before its first step never enters.
        reader.add_done_callback(lambda _: answers.end())
        self._stream_readers.add(reader)
        try:
            await answers.write_all(context.write)
        finally:
            self._stream_readers.discard(reader)
            for pending in (reader, *under_way):
                pending.cancel()
        if reader.cancelled():
            return self._refused("ClassifyStream")
        error = reader.exception()
        return status_from_error(error) if isinstance(error, Exception) else None

    def _refused(self, method: str) -> Status:
        self._metrics.count_request(method, "", StatusCode.UNAVAILABLE.name, 0.0)
        return status_from_error(self._calls.refusal)

    def _deadline(self, context: ServicerContext[ClassifyRequest, ClassifyResponse]) -> float | None:
        remaining_s = context.time_remaining()
        return None if remaining_s is None else self._clock() + remaining_s

    async def _answer(self, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse | Status:
        call = _Call("Classify", request, self._clock())
        deadline = call.deadline(deadline)
        try:
            contents = self._checked(call)
            if not _all_rows(contents):
                return await self._decode_and_answer(call, contents, deadline)
            pending = call.found_model.batcher.submit(contents, deadline=deadline)
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            return self._failed(call, error)
        return await self._settled(call, pending)

    async def _decode_and_answer(
        self, call: "_Call", contents: list[Row | bytes], deadline: float | None
    ) -> ClassifyResponse | Status:
        model = call.found_model
        try:
            begun = time.monotonic()
            rows, promise = await self._image_rows.decoded(contents, model, deadline)
            call.preprocess_s = time.monotonic() - begun
            self._metrics.count_preprocess(model.name, call.preprocess_s)
            pending = model.batcher.submit(rows, deadline=deadline, promise=promise)
        except asyncio.CancelledError:
            self._count(call, StatusCode.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            return self._failed(call, error)
        return await self._settled(call, pending)

    async def _settled(self, call: "_Call", pending: asyncio.Future[BatchedRows]) -> ClassifyResponse | Status:
        try:
            await pending
        except asyncio.CancelledError:
            self._count(call, StatusCode.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            return self._failed(call, error)
        return self._answered(call, pending)

    def _checked(self, call: "_Call") -> list[Row | bytes]:
        """Find the request's model and check all of the request; return what its images hold."""
        call.model = self._repository.get(call.request.model)
        call.top_k = _checked_top_k(call.request, call.model)
        return self._image_rows.checked(call.request.images, call.model)

    def _answered(self, call: "_Call", pending: asyncio.Future[BatchedRows]) -> ClassifyResponse | Status:
        """The answer that a future of the batcher, done and not cancelled, makes."""
        try:
            batched = pending.result()
            # Requests of a batch are answered one right after the other, so the last batch is the only one needed.
            if self._ranked is None or self._ranked.logits is not batched.shared_logits:
                self._ranked = RankedBatch(batched.shared_logits, call.found_model.manifest.task)
            response = _response(call, batched, self._ranked)
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            return self._failed(call, error)
        self._count(call, StatusCode.OK, batched)
        return response

    def _failed(self, call: "_Call", error: Exception) -> Status:
        status = status_from_error(error)
        self._count(call, status.code)
        return status

    def _count(self, call: "_Call", code: StatusCode, batched: BatchedRows | None = None) -> None:
        model_name = "" if call.model is None else call.model.name
        self._metrics.count_request(call.method, model_name, code.name, self._clock() - call.started, batched)


@dataclass(slots=True)
class _Call:
    """One request on its way to its answer."""

    method: str
    request: ClassifyRequest
    started: float
    model: Model | None = None
    """None until it is found."""
    top_k: int = 1
    preprocess_s: float = 0.0

    def deadline(self, of_call: float | None) -> float | None:
        """When the answer has to be there: by the deadline of the gRPC call, and within the request's own timeout."""
        if not self.request.timeout_ms:
            return of_call
        own = self.started + self.request.timeout_ms / 1000
        return own if of_call is None else min(own, of_call)

    @property
    def found_model(self) -> Model:
        """The model, once the request was checked."""
        assert self.model is not None
        return self.model


def _all_rows(contents: list[Row | bytes]) -> TypeGuard[list[Row]]:
    return bytes not in map(type, contents)


async def _abort(context: ServicerContext[Any, Any], status: Status) -> NoReturn:
    await context.abort(status.code, status.message, status.trailing_metadata)


def _checked_top_k(request: ClassifyRequest, model: Model) -> int:
    top_k = request.top_k if request.HasField("top_k") else 1
    classes = model.classes
    if not 1 <= top_k <= classes:
        raise RequestError(f"top_k is {top_k}; {model.name} has {classes} classes, so it must be from 1 to {classes}")
    return top_k


def _response(call: _Call, batched: BatchedRows, ranked: RankedBatch) -> ClassifyResponse:
    model, request, rows = call.found_model, call.request, len(batched.logits)
    if not ranked.is_finite(batched.first_row, rows):
        raise BackendError(f"{model.name} on {model.backend.name} answered logits that are not finite")
    manifest = model.manifest
    response = ClassifyResponse(model=manifest.name, model_version=manifest.version, id=request.id)
    timing = response.timing
    timing.preprocess_ms = call.preprocess_s * 1000
    timing.queue_ms = batched.queue_ms
    timing.compute_ms = batched.compute_ms
    timing.batch_rows = batched.batch_rows
    labels, results = manifest.labels, response.results
    for predictions in ranked.top(call.top_k)[batched.first_row : batched.first_row + rows]:
        add_prediction = results.add().predictions.add
        for index, probability in predictions:
            add_prediction(index=index, label=labels[index], probability=probability)
    if request.return_logits:
        for result, logits in zip(results, batched.logits, strict=True):
            result.logits = logits.astype("<f4", copy=False).tobytes()
    return response


def _stream_answer(request: ClassifyRequest, answer: ClassifyResponse | Status) -> ClassifyResponse:
    if isinstance(answer, ClassifyResponse):
        return answer
    return ClassifyResponse(
        model=request.model,
        id=request.id,
        error=StreamError(
            code=answer.code.value[0],
            message=answer.message,
            error_name=answer.error_name,
            retry_after_ms=answer.retry_after_ms,
        ),
    )
