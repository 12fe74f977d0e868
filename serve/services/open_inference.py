"""inference.GRPCInferenceService: the Open Inference Protocol, as KServe and Triton speak it, for raw pixels."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version

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
from fuseline.serve.errors import UnknownModelError
from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.services.calls import answer_or_abort
from fuseline.serve.services.inference_calls import InferenceCalls
from fuseline.serve.services.open_inference_codec import OpenInferenceCodec, find_version, stream_message
from fuseline.serve.services.open_inference_config import config_of, metadata_of, statistics_of
from fuseline.serve.settings import Settings

SERVICE_NAME = "inference.GRPCInferenceService"

EXTENSIONS = ("model_configuration", "statistics")
"""Extensions of the protocol that are served."""


class OpenInferenceService(GRPCInferenceServiceServicer):
    """Answers open_inference.proto's methods for the models of a repository.

    Inference is answered as `InferenceCalls` guarantees. Only the parameter `timeout` of a request has an effect:
    microseconds from its arrival after which its answer is of no use.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        statistics: Callable[[], Awaitable[Mapping[str, InferenceStatistics]]] | None = None,
    ) -> None:
        """Answer from `repository`. `clock` is the batchers' own, on which deadlines are.

        `statistics` reads them by model name; None: they are those of `metrics`.
        """
        self._repository = repository
        self._metrics = metrics
        self._settings = settings
        self._read_statistics = statistics
        self.has_backend = True
        """Whether a backend computes the models now; if not, no model is ready."""
        self._codec = OpenInferenceCodec(repository, settings.max_images_per_request)
        self._calls = InferenceCalls(metrics, settings, clock)

    @property
    def _ready(self) -> bool:
        return self.has_backend and not self._calls.refused

    async def ServerLive(  # noqa: N802
        self, _request: ServerLiveRequest, _context: ServicerContext[ServerLiveRequest, ServerLiveResponse]
    ) -> ServerLiveResponse:
        """Answer that the server is live."""
        return ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, _request: ServerReadyRequest, _context: ServicerContext[ServerReadyRequest, ServerReadyResponse]
    ) -> ServerReadyResponse:
        """Answer whether requests are admitted. Every model is warm before the first call."""
        return ServerReadyResponse(ready=self._ready)

    async def ServerMetadata(  # noqa: N802
        self, _request: ServerMetadataRequest, _context: ServicerContext[ServerMetadataRequest, ServerMetadataResponse]
    ) -> ServerMetadataResponse:
        """Return the server's name, version and extensions of the protocol."""
        return ServerMetadataResponse(name="fuseline", version=version("fuseline"), extensions=EXTENSIONS)

    async def ModelReady(  # noqa: N802
        self, request: ModelReadyRequest, _context: ServicerContext[ModelReadyRequest, ModelReadyResponse]
    ) -> ModelReadyResponse:
        """Answer whether a model takes requests. One that is not served doesn't, which is no error."""
        try:
            self._find(request.name, request.version)
        except UnknownModelError:
            return ModelReadyResponse(ready=False)
        return ModelReadyResponse(ready=self._ready)

    async def ModelMetadata(  # noqa: N802
        self, request: ModelMetadataRequest, context: ServicerContext[ModelMetadataRequest, ModelMetadataResponse]
    ) -> ModelMetadataResponse:
        """Return a model's tensors."""
        return await answer_or_abort(context, lambda: metadata_of(self._find(request.name, request.version)))

    async def ModelConfig(  # noqa: N802
        self, request: ModelConfigRequest, context: ServicerContext[ModelConfigRequest, ModelConfigResponse]
    ) -> ModelConfigResponse:
        """Return a model's configuration."""
        return await answer_or_abort(
            context,
            lambda: ModelConfigResponse(config=config_of(self._find(request.name, request.version), self._settings)),
        )

    async def ModelStatistics(  # noqa: N802
        self, request: ModelStatisticsRequest, context: ServicerContext[ModelStatisticsRequest, ModelStatisticsResponse]
    ) -> ModelStatisticsResponse:
        """Return the statistics of a model, or, when none is named, of each."""
        counted = self._metrics.statistics if self._read_statistics is None else await self._read_statistics()

        def statistics() -> ModelStatisticsResponse:
            models = [self._find(request.name, request.version)] if request.name else self._repository
            return ModelStatisticsResponse(model_stats=[statistics_of(model, counted[model.name]) for model in models])

        return await answer_or_abort(context, statistics)

    async def RepositoryIndex(  # noqa: N802
        self,
        _request: RepositoryIndexRequest,
        _context: ServicerContext[RepositoryIndexRequest, RepositoryIndexResponse],
    ) -> RepositoryIndexResponse:
        """Return the names of the served models."""
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
        return await self._calls.answer("ModelInfer", self._codec, request, context)

    async def ModelStreamInfer(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ModelInferRequest],
        context: ServicerContext[ModelInferRequest, ModelStreamInferResponse],
    ) -> None:
        """Compute the logits of requests as they come; answers are in the order of the requests."""
        await self._calls.stream(
            "ModelStreamInfer", self._codec, request_iterator, context, stream_message, in_order=True
        )

    def refuse(self) -> None:
        """Refuse new calls from now on, and read no further from streams."""
        self._calls.refuse()

    async def idle(self) -> None:
        """Return, after `refuse`, once every request that came before has its answer."""
        await self._calls.idle()

    def _find(self, name: str, version: str) -> Model:
        return find_version(self._repository, name, version)
