"""inference.GRPCInferenceService: the Open Inference Protocol, as KServe and Triton speak it, for raw pixels."""

import asyncio
import math
import reprlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple, NoReturn, TypeVar

from grpc import StatusCode
from grpc.aio import ServicerContext

from fuseline.protos.open_inference_pb2 import (
    ModelConfigRequest,
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    ModelStreamInferResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from fuseline.serve.batching.batcher import BatchedRows
from fuseline.serve.errors import ShuttingDownError, UnknownModelError
from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.services.calls import Calls
from fuseline.serve.services.open_inference_config import config_of, metadata_of, statistics_of
from fuseline.serve.services.open_inference_tensors import pixels_from_request, response_from_logits
from fuseline.serve.services.ordered_streams import OrderedStreams, StreamPace
from fuseline.serve.services.statuses import Status, status_from_error
from fuseline.serve.settings import Settings

SERVICE_NAME = "inference.GRPCInferenceService"

EXTENSIONS = ("model_configuration", "statistics")
"""Of the protocol's extensions, those that are served."""

_Answer = TypeVar("_Answer")


class OpenInferenceService(GRPCInferenceServiceServicer):
    """Answers open_inference.proto's methods for the models of a repository.

    What `ClassifyService` guarantees holds here too: every request is answered once, in full or by one error, and
    leaves the queue when its client cancels or its deadline can't be met. Of a request's parameters only `timeout` has
    an effect: microseconds from its arrival, after which its answer is of no use.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        statistics: Callable[[], Awaitable[Mapping[str, InferenceStatistics]]] | None = None,
    ) -> None:
        """`clock` is the one by which the batcher reads deadlines. `statistics` by model; None: what `metrics` has."""
        self._repository = repository
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._read_statistics = statistics
        self.has_backend = True
        """Whether something computes the models now; if not, none is ready."""
        self._calls = Calls()
        self._streams = OrderedStreams()

    @property
    def _ready(self) -> bool:
        return self.has_backend and not self._calls.refused

    async def ServerLive(  # noqa: N802
        self, _request: ServerLiveRequest, _context: ServicerContext[ServerLiveRequest, ServerLiveResponse]
    ) -> ServerLiveResponse:
        """Tell that the server answers."""
        return ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, _request: ServerReadyRequest, _context: ServicerContext[ServerReadyRequest, ServerReadyResponse]
    ) -> ServerReadyResponse:
        """Tell whether requests are taken. Every model is warm before the first call."""
        return ServerReadyResponse(ready=self._ready)

    async def ServerMetadata(  # noqa: N802
        self, _request: ServerMetadataRequest, _context: ServicerContext[ServerMetadataRequest, ServerMetadataResponse]
    ) -> ServerMetadataResponse:
        """Tell the server's name, version and extensions of the protocol."""
        return ServerMetadataResponse(name="fuseline", version=version("fuseline"), extensions=EXTENSIONS)

    async def ModelReady(  # noqa: N802
        self, request: ModelReadyRequest, _context: ServicerContext[ModelReadyRequest, ModelReadyResponse]
    ) -> ModelReadyResponse:
        """Tell whether a model takes requests. One that is not served doesn't, which is no error."""
        try:
            self._find(request.name, request.version)
        except UnknownModelError:
            return ModelReadyResponse(ready=False)
        return ModelReadyResponse(ready=self._ready)

    async def ModelMetadata(  # noqa: N802
        self, request: ModelMetadataRequest, context: ServicerContext[ModelMetadataRequest, ModelMetadataResponse]
    ) -> ModelMetadataResponse:
        """Tell a model's tensors."""
        return await _answered(context, lambda: metadata_of(self._find(request.name, request.version)))

    async def ModelConfig(  # noqa: N802
        self, request: ModelConfigRequest, context: ServicerContext[ModelConfigRequest, ModelConfigResponse]
    ) -> ModelConfigResponse:
        """Tell how a model is served."""
        return await _answered(
            context,
            lambda: ModelConfigResponse(config=config_of(self._find(request.name, request.version), self._settings)),
        )

    async def ModelStatistics(  # noqa: N802
        self, request: ModelStatisticsRequest, context: ServicerContext[ModelStatisticsRequest, ModelStatisticsResponse]
    ) -> ModelStatisticsResponse:
        """Tell what was counted for a model, or, when none is named, for each."""
        counted = self._metrics.statistics if self._read_statistics is None else await self._read_statistics()

        def statistics() -> ModelStatisticsResponse:
            models = [self._find(request.name, request.version)] if request.name else self._repository
            return ModelStatisticsResponse(model_stats=[statistics_of(model, counted[model.name]) for model in models])

        return await _answered(context, statistics)

    async def RepositoryIndex(  # noqa: N802
        self,
        _request: RepositoryIndexRequest,
        _context: ServicerContext[RepositoryIndexRequest, RepositoryIndexResponse],
    ) -> RepositoryIndexResponse:
        """Name the models that are served."""
        state = "READY" if self._ready else "UNAVAILABLE"
        return RepositoryIndexResponse(
            models=[
                RepositoryIndexResponse.ModelIndex(name=model.name, version=model.manifest.version, state=state)
                for model in self._repository
            ]
        )

    async def ModelInfer(  # noqa: N802
        self, request: ModelInferRequest, context: ServicerContext[ModelInferRequest, ModelInferResponse]
    ) -> ModelInferResponse:
        """Compute the logits of the images of one request."""
        try:
            with self._calls:
                answer = await self._finished("ModelInfer", self._begun(request, self._deadline(context)))
        except ShuttingDownError:
            answer = self._refused("ModelInfer")
        if isinstance(answer, Status):
            await _abort(context, answer)
        return answer

    async def ModelStreamInfer(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ModelInferRequest],
        context: ServicerContext[ModelInferRequest, ModelStreamInferResponse],
    ) -> None:
        """Compute the logits of requests as they come; answers are in the order of the requests.

        A request that fails is answered by its error, and the stream goes on. A bounded number of requests is under way
        at a time, as in `ClassifyStream`, and a drain ends a stream as it does there.
        """
        try:
            with self._calls:
                error = await self._stream(request_iterator, context)
        except ShuttingDownError:
            error = self._refused("ModelStreamInfer")
        if error is not None:
            await _abort(context, error)

    def refuse(self) -> None:
        """Refuse what comes from now on, and read no further from streams."""
        self._calls.refuse()
        self._streams.cut_short()

    async def idle(self) -> None:
        """Return, after `refuse`, once everything that came before has its answer."""
        await self._calls.idle()

    async def _stream(
        self,
        requests: AsyncIterator[ModelInferRequest],
        context: ServicerContext[ModelInferRequest, ModelStreamInferResponse],
    ) -> Status | None:
        """Answer a stream; return with what it must end, if not OK."""
        deadline = self._deadline(context)
        pace = StreamPace(self._settings)

        def begin(request: ModelInferRequest) -> _Inference:
            inference = self._begun(request, deadline)
            batcher = None if inference.model is None else inference.model.batcher
            pace.note(batcher, has_timeout=timeout_of(request) is not None)
            return inference

        async def finish(inference: _Inference) -> None:
            answer = await self._finished("ModelStreamInfer", inference)
            await context.write(_stream_answer(inference.request, answer))

        def abandon(inference: _Inference) -> None:
            # asyncio complains of an error that nobody looked at.
            if isinstance(inference.outcome, asyncio.Future) and not inference.outcome.cancel():
                inference.outcome.exception()
            self._count("ModelStreamInfer", inference, StatusCode.CANCELLED)

        try:
            ended = await self._streams.run(
                requests,
                begin=begin,
                finish=finish,
                abandon=abandon,
                has_room=lambda in_flight: pace.has_room(in_flight, in_flight),
            )
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            return status_from_error(error)
        return None if ended else self._refused("ModelStreamInfer")

    def _deadline(self, context: ServicerContext[Any, Any]) -> float | None:
        remaining_s = context.time_remaining()
        return None if remaining_s is None else self._clock() + remaining_s

    def _begun(self, request: ModelInferRequest, deadline: float | None) -> "_Inference":
        """Check a request and hand it to its model's batcher; `_finished` must follow. Never raises."""
        started = self._clock()
        if (timeout_s := timeout_of(request)) is not None:
            deadline = min(started + timeout_s, math.inf if deadline is None else deadline)
        model = None
        try:
            model = self._find(request.model_name, request.model_version)
            pixels = pixels_from_request(request, model, max_images=self._settings.max_images_per_request)
            outcome: asyncio.Future[BatchedRows] | Status = model.batcher.submit(list(pixels), deadline=deadline)
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            outcome = status_from_error(error)
        return _Inference(request, started, model, outcome)

    async def _finished(self, method: str, inference: "_Inference") -> ModelInferResponse | Status:
        code, batched = StatusCode.CANCELLED, None
        try:
            if isinstance(inference.outcome, Status):
                code = inference.outcome.code
                return inference.outcome
            batched = await inference.outcome
            assert inference.model is not None
            response = response_from_logits(inference.request, inference.model, batched.logits)
            code = StatusCode.OK
            return response
        except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
            status = status_from_error(error)
            code = status.code
            return status
        finally:
            self._count(method, inference, code, batched)

    def _count(
        self, method: str, inference: "_Inference", code: StatusCode, batched: BatchedRows | None = None
    ) -> None:
        model_name = "" if inference.model is None else inference.model.name
        self._metrics.count_request(method, model_name, code.name, self._clock() - inference.started, batched)

    def _refused(self, method: str) -> Status:
        self._metrics.count_request(method, "", StatusCode.UNAVAILABLE.name, 0.0)
        return status_from_error(self._calls.refusal)

    def _find(self, name: str, version: str) -> Model:
        """Return the model; an empty name stands for the only one, an empty version for the one that is served."""
        model = self._repository.get(name)
        if version not in {"", model.manifest.version}:
            raise UnknownModelError(
                f"there is no version {reprlib.repr(version)} of {model.name} here; served: {model.manifest.version!r}"
            )
        return model


def timeout_of(request: ModelInferRequest) -> float | None:
    """Seconds of the parameter `timeout`, in microseconds as Triton has it; None where it is absent or 0."""
    timeout_us = request.parameters["timeout"].int64_param if "timeout" in request.parameters else 0
    return timeout_us / 1e6 if timeout_us > 0 else None


class _Inference(NamedTuple):
    """A request under way: what the batcher will answer, or why it was refused."""

    request: ModelInferRequest
    started: float
    model: Model | None
    outcome: asyncio.Future[BatchedRows] | Status


def _stream_answer(request: ModelInferRequest, answer: ModelInferResponse | Status) -> ModelStreamInferResponse:
    if isinstance(answer, ModelInferResponse):
        return ModelStreamInferResponse(infer_response=answer)
    return ModelStreamInferResponse(
        error_message=f"{answer.code.name}: {answer.message}", infer_response=ModelInferResponse(id=request.id)
    )


async def _answered(context: ServicerContext[Any, Any], answer: Callable[[], _Answer]) -> _Answer:
    try:
        return answer()
    except Exception as error:  # noqa: BLE001 the boundary: what is unforeseen is logged and told as INTERNAL
        await _abort(context, status_from_error(error))


async def _abort(context: ServicerContext[Any, Any], status: Status) -> NoReturn:
    await context.abort(status.code, status.message, status.trailing_metadata)
