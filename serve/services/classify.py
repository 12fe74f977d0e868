"""fuseline.v1.Classifier: a request is validated, its images become rows, the batcher answers them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import numpy as np
from grpc import StatusCode
from grpc.aio import ServicerContext

from protos.classify_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    GetModelRequest,
    GetModelResponse,
    StreamError,
    Timing,
)
from protos.classify_pb2_grpc import ClassifierServicer
from serve.batcher import BatchedRows
from serve.errors import BackendError, RequestError, ShuttingDownError
from serve.metrics import Metrics
from serve.model import Model
from serve.repository import Repository
from serve.services.image_rows import ImageRows
from serve.services.statuses import Status, status_from_error
from serve.services.top_k import top_k_from_logits
from serve.settings import Settings

SERVICE_NAME = "fuseline.v1.Classifier"

_USUAL_IN_FLIGHT_PER_STREAM = 64
_DRAINING = "the server is shutting down and takes nothing new; send this to another server, or again later"


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
        self._calls = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._stream_readers: set[asyncio.Task[None]] = set()

    async def Classify(  # noqa: N802
        self, request: ClassifyRequest, context: ServicerContext[ClassifyRequest, ClassifyResponse]
    ) -> ClassifyResponse:
        """Classify the images of one request."""
        if self._draining:
            await _abort(context, self._refused("Classify"))
        self._calls += 1
        try:
            answer = await self._answer("Classify", request, self._deadline(context))
        finally:
            self._leave()
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
        if self._draining:
            await _abort(context, self._refused("ClassifyStream"))
        self._calls += 1
        try:
            error = await self._stream(request_iterator, context)
        finally:
            # Nothing may be awaited here: a second cancellation would skip what follows.
            self._leave()
        if error is not None:
            await _abort(context, error)

    async def GetModel(  # noqa: N802
        self, request: GetModelRequest, context: ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe one model, and the limits of this server."""
        try:
            return _description(self._repository.get(request.model), self._settings)
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            await _abort(context, status_from_error(error))

    def refuse(self) -> None:
        """Refuse what comes from now on, and read no further from streams."""
        self._draining = True
        for reader in self._stream_readers:
            reader.cancel()

    async def idle(self) -> None:
        """Return, after `refuse`, once everything that came before has its answer."""
        if self._calls:
            await self._idle.wait()

    async def _stream(
        self,
        request_iterator: AsyncIterator[ClassifyRequest],
        context: ServicerContext[ClassifyRequest, ClassifyResponse],
    ) -> Status | None:
        """Answer a stream; return with what it must end, if not OK."""
        deadline = self._deadline(context)
        answers: asyncio.Queue[ClassifyResponse | None] = asyncio.Queue()
        slots = asyncio.Semaphore(self._in_flight_per_stream())
        requests: set[asyncio.Task[None]] = set()

        async def answer(request: ClassifyRequest) -> None:
            answers.put_nowait(_stream_answer(request, await self._answer("ClassifyStream", request, deadline)))

        async def read() -> None:
            try:
                await slots.acquire()
                async for request in request_iterator:
                    task = asyncio.create_task(answer(request))
                    requests.add(task)
                    task.add_done_callback(requests.discard)
                    await slots.acquire()
            finally:
                # Nothing more is read, so a drain has nothing to cut short, and must not cut short the wait below.
                self._stream_readers.discard(reader)
                if requests:
                    await asyncio.wait(requests)

        reader = asyncio.create_task(read())
        # Not in the reader's own `finally`, which a reader cancelled before its first step never enters.
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        self._stream_readers.add(reader)
        try:
            while (response := await answers.get()) is not None:
                await context.write(response)
                slots.release()
        finally:
            self._stream_readers.discard(reader)
            for task in (reader, *requests):
                task.cancel()
        if reader.cancelled():
            return self._refused("ClassifyStream")
        error = reader.exception()
        return status_from_error(error) if isinstance(error, Exception) else None

    def _in_flight_per_stream(self) -> int:
        """Enough for two full batches, but no more than the queue takes from a stream of single images."""
        wanted = max(_USUAL_IN_FLIGHT_PER_STREAM, 2 * (self._settings.max_batch or 0))
        return min(wanted, self._settings.max_queue_rows)

    def _leave(self) -> None:
        self._calls -= 1
        if self._draining and not self._calls:
            self._idle.set()

    def _refused(self, method: str) -> Status:
        self._metrics.count_request(method, "", StatusCode.UNAVAILABLE.name, 0.0)
        return status_from_error(ShuttingDownError(_DRAINING))

    def _deadline(self, context: ServicerContext[ClassifyRequest, ClassifyResponse]) -> float | None:
        remaining_s = context.time_remaining()
        return None if remaining_s is None else self._clock() + remaining_s

    async def _answer(self, method: str, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse | Status:
        started = self._clock()
        model_name = ""
        code = StatusCode.CANCELLED
        try:
            model = self._repository.get(request.model)
            model_name = model.name
            response = await self._classify(model, request, deadline)
            code = StatusCode.OK
            return response
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            status = status_from_error(error)
            code = status.code
            return status
        finally:
            self._metrics.count_request(method, model_name, code.name, self._clock() - started)

    async def _classify(self, model: Model, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse:
        top_k = _checked_top_k(request, model)
        rows, preprocess_s = await self._image_rows.from_images(request.images, model)
        if preprocess_s:
            self._metrics.count_preprocess(model.name, preprocess_s)
        batched = await model.batcher.submit(rows, deadline=deadline)
        return _response(request, model, top_k, batched, preprocess_s)


async def _abort(context: ServicerContext[Any, Any], status: Status) -> NoReturn:
    await context.abort(status.code, status.message, status.trailing_metadata)


def _checked_top_k(request: ClassifyRequest, model: Model) -> int:
    top_k = request.top_k if request.HasField("top_k") else 1
    classes = model.manifest.classes
    if not 1 <= top_k <= classes:
        raise RequestError(f"top_k is {top_k}; {model.name} has {classes} classes, so it must be from 1 to {classes}")
    return top_k


def _response(
    request: ClassifyRequest, model: Model, top_k: int, batched: BatchedRows, preprocess_s: float
) -> ClassifyResponse:
    if not np.isfinite(batched.logits).all():
        raise BackendError(f"{model.name} on {model.backend.name} answered logits that are not finite")
    response = ClassifyResponse(
        model=model.name,
        model_version=model.manifest.version,
        id=request.id,
        timing=Timing(
            preprocess_ms=preprocess_s * 1000,
            queue_ms=batched.queue_ms,
            compute_ms=batched.compute_ms,
            batch_rows=batched.batch_rows,
        ),
    )
    labels = model.manifest.labels
    indices, probabilities = top_k_from_logits(batched.logits, top_k)
    for row, (its_indices, its_probabilities) in enumerate(zip(indices.tolist(), probabilities.tolist(), strict=True)):
        result = response.results.add()
        for index, probability in zip(its_indices, its_probabilities, strict=True):
            result.predictions.add(index=index, label=labels[index], probability=probability)
        if request.return_logits:
            result.logits = batched.logits[row].astype("<f4", copy=False).tobytes()
    return response


def _stream_answer(request: ClassifyRequest, answer: ClassifyResponse | Status) -> ClassifyResponse:
    if isinstance(answer, ClassifyResponse):
        return answer
    return ClassifyResponse(
        model=request.model,
        id=request.id,
        error=StreamError(code=answer.code.value[0], message=answer.message, error_name=answer.error_name),
    )


def _description(model: Model, settings: Settings) -> GetModelResponse:
    manifest = model.manifest
    spec = manifest.input
    return GetModelResponse(
        name=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        labels=manifest.labels,
        height=spec.height,
        width=spec.width,
        channels=spec.channels,
        resize_shorter_side=spec.preprocessing.resize_shorter_side,
        interpolation=spec.preprocessing.interpolation,
        backend=model.backend.name,
        precision=model.backend.precision,
        backend_reason=model.backend_reason,
        batch_buckets=model.backend.buckets,
        max_images_per_request=settings.max_images_per_request,
        max_message_bytes=settings.max_message_bytes,
        verification_json=json.dumps([result.model_dump(mode="json") for result in manifest.verification]),
    )
