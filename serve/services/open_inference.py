"""inference.GRPCInferenceService: the Open Inference Protocol, as KServe and Triton speak it."""

import reprlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from importlib.metadata import version

from grpc.aio import ServicerContext

from fuseline.protos.open_inference_pb2 import (
    LogSettingsRequest,
    LogSettingsResponse,
    ModelConfig,
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
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
    TraceSettingRequest,
    TraceSettingResponse,
)
from fuseline.serve.errors import RequestError, UnknownModelError
from fuseline.serve.metrics.inference_statistics import InferenceStatistics, statistics_key
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.model_control.control import ModelControl, ModelState
from fuseline.serve.model_control.fixed_models import FixedModels
from fuseline.serve.repository import Repository
from fuseline.serve.routing.routes import Routes
from fuseline.serve.routing.shadows import Shadows
from fuseline.serve.services.call_context import NO_CONTEXT, CallContext
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.calls import answer_or_abort, await_or_abort
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.inference_calls import InferenceCalls
from fuseline.serve.services.open_inference_codec import OpenInferenceCodec, stream_message
from fuseline.serve.services.open_inference_config import alias_index, config_of, metadata_of, statistics_of
from fuseline.serve.services.open_inference_memory import SharedMemoryMethods
from fuseline.serve.services.open_inference_settings import (
    LogValue,
    log_changes,
    log_settings,
    log_settings_response,
    trace_settings,
)
from fuseline.serve.services.statuses import Status
from fuseline.serve.settings import Settings
from fuseline.serve.shared_memory.registrar import Registrar

SERVICE_NAME = "inference.GRPCInferenceService"

EXTENSIONS = (
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Extensions of the protocol that are served, beside those of shared memory."""


class OpenInferenceService(SharedMemoryMethods):
    """Answers open_inference.proto's methods for the models of a repository.

    Inference is answered as `InferenceCalls` guarantees.
    """

    def __init__(
        self,
        repository: Repository,
        image_rows: ImageRows,
        metrics: Metrics,
        settings: Settings,
        registrar: Registrar,
        clock: Callable[[], float] = time.monotonic,
        statistics: Callable[[], Awaitable[Mapping[str, InferenceStatistics]]] | None = None,
        control: ModelControl | None = None,
        *,
        limits: CallLimits | None = None,
        routes: Routes | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        """Answer from `repository`, with the memory of `registrar`. `clock` is the batchers' own, for deadlines.

        `statistics` reads them by `statistics_key`; None: they are those of `metrics`. `control` loads and unloads
        models; None: they stay as they are. `limits` is as for `InferenceCalls`. `routes` are to models of
        `repository`; None: there are no aliases. `shadows` sample the requests.
        """
        super().__init__(registrar)
        self._repository = repository
        self._metrics = metrics
        self._settings = settings
        self._read_statistics = statistics
        self._control = control or FixedModels(repository)
        self.has_backend = True
        """Whether a backend computes the models now; if not, no model is ready."""
        self.is_live: Callable[[], bool] = lambda: True
        """Returns whether progress is made, or else the server is to be started again."""
        self._routes = Routes(repository) if routes is None else routes
        self._codec = OpenInferenceCodec(self._routes.finder, image_rows, registrar.regions, settings)
        self._calls = InferenceCalls(metrics, settings, clock, limits=limits, shadows=shadows, service=SERVICE_NAME)

    @property
    def ready(self) -> bool:
        """Whether requests are admitted. Every model is warm before the first call."""
        return self.has_backend and not self._calls.refused

    def model_ready(self, name: str, version: str) -> bool:
        """Return whether a model takes requests. One that is not served doesn't, which is no error."""
        try:
            self._find(name, version)
        except UnknownModelError:
            return False
        return self.ready

    def server_metadata(self) -> ServerMetadataResponse:
        """Return the server's name, version and extensions of the protocol."""
        extensions = (*EXTENSIONS, *self.memory_extensions)
        return ServerMetadataResponse(name="fuseline", version=version("fuseline"), extensions=extensions)

    def metadata(self, name: str, version: str) -> ModelMetadataResponse:
        """Return a model's tensors; of an alias those of its targets. Raises `UnknownModelError`."""
        model = self._find(name, version)
        described = metadata_of(model, self._routes.versions(name or model.name))
        if name in self._routes.aliases:
            described.name = name
        return described

    def config(self, name: str, version: str) -> ModelConfig:
        """Return a model's configuration; of an alias that of its first target. Raises `UnknownModelError`."""
        model = self._find(name, version)
        config = config_of(model, self._repository.versions(model.name), self._settings)
        if name in self._routes.aliases:
            config.name = name
        return config

    async def statistics(self, name: str, version: str) -> ModelStatisticsResponse:
        """Return the statistics of a version; for an empty one of all, for an empty name of all models.

        Those of an alias are its targets', which count what was answered under any name. They have the alias's name, by
        which clients look for them.

        Raises `UnknownModelError`.
        """
        models = self._routes.served(name, version) if name else list(self._repository)
        counted = self._metrics.statistics if self._read_statistics is None else await self._read_statistics()
        all_statistics = [
            statistics_of(model, counted.get(statistics_key(model.name, model.version)) or InferenceStatistics())
            for model in models
        ]
        if name in self._routes.aliases:
            for statistics in all_statistics:
                statistics.name = name
        return ModelStatisticsResponse(model_stats=all_statistics)

    async def index(self, *, ready: bool = False) -> RepositoryIndexResponse:
        """Return every known version and its state, then the aliases; with `ready`, only what takes requests now."""
        lines = await self._control.index(ready=ready)
        if not self.ready:
            down = {ModelState.READY: ModelState.UNAVAILABLE}
            lines = [] if ready else [line._replace(state=down.get(line.state, line.state)) for line in lines]
        models = [
            RepositoryIndexResponse.ModelIndex(
                name=line.name, version=line.version, state=line.state.value, reason=line.reason
            )
            for line in lines
        ]
        aliases = alias_index(self._routes.entries(), is_ready=self.ready)
        return RepositoryIndexResponse(models=[*models, *(row for row in aliases if row.state == "READY" or not ready)])

    async def load(self, repository: str, name: str, parameters: Collection[str]) -> None:
        """Load a model, or what its folder has now; `parameters` are the names of those of the request.

        Raises what `ModelControl.load` does.
        """
        _check_repository(repository)
        await self._control.load(name, dict.fromkeys(parameters, ""))

    async def unload(self, repository: str, name: str, *, unload_dependents: bool = False) -> None:
        """Unload a model. Raises what `ModelControl.unload` does."""
        _check_repository(repository)
        await self._control.unload(name, unload_dependents=unload_dependents)

    def trace_settings(self, model: str, settings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return the trace settings of a model or, for an empty name, of the server; `settings` are to be changed.

        Raises:
            UnknownModelError: no such model is served.
            RequestError: a setting can't be changed so; see `open_inference_settings.trace_settings`.
        """
        if model:
            self._find(model, "")
        return trace_settings(settings)

    def log_settings(self, settings: Mapping[str, LogValue | None]) -> dict[str, LogValue]:
        """Return the log's settings once `settings` are changed, all or none; None is a value that was left out.

        Raises `RequestError` if one can't be changed so.
        """
        return log_settings(settings)

    async def infer(
        self, method: str, request: ModelInferRequest, call: CallContext = NO_CONTEXT
    ) -> ModelInferResponse | Status:
        """Return the answer to `request`, counted under `method`, or the status of the error."""
        return await self._calls.run(method, self._codec, request, call)

    async def ServerLive(  # noqa: N802
        self, _request: ServerLiveRequest, context: ServicerContext[ServerLiveRequest, ServerLiveResponse]
    ) -> ServerLiveResponse:
        """Answer `is_live`."""
        return await answer_or_abort(context, lambda: ServerLiveResponse(live=self.is_live()))

    async def ServerReady(  # noqa: N802
        self, _request: ServerReadyRequest, context: ServicerContext[ServerReadyRequest, ServerReadyResponse]
    ) -> ServerReadyResponse:
        """Answer `ready`."""
        return await answer_or_abort(context, lambda: ServerReadyResponse(ready=self.ready))

    async def ServerMetadata(  # noqa: N802
        self, _request: ServerMetadataRequest, context: ServicerContext[ServerMetadataRequest, ServerMetadataResponse]
    ) -> ServerMetadataResponse:
        """Answer `server_metadata`."""
        return await answer_or_abort(context, self.server_metadata)

    async def ModelReady(  # noqa: N802
        self, request: ModelReadyRequest, context: ServicerContext[ModelReadyRequest, ModelReadyResponse]
    ) -> ModelReadyResponse:
        """Answer `model_ready`."""
        return await answer_or_abort(
            context, lambda: ModelReadyResponse(ready=self.model_ready(request.name, request.version))
        )

    async def ModelMetadata(  # noqa: N802
        self, request: ModelMetadataRequest, context: ServicerContext[ModelMetadataRequest, ModelMetadataResponse]
    ) -> ModelMetadataResponse:
        """Answer `metadata`."""
        return await answer_or_abort(context, lambda: self.metadata(request.name, request.version))

    async def ModelConfig(  # noqa: N802
        self, request: ModelConfigRequest, context: ServicerContext[ModelConfigRequest, ModelConfigResponse]
    ) -> ModelConfigResponse:
        """Answer `config`."""
        return await answer_or_abort(
            context, lambda: ModelConfigResponse(config=self.config(request.name, request.version))
        )

    async def ModelStatistics(  # noqa: N802
        self, request: ModelStatisticsRequest, context: ServicerContext[ModelStatisticsRequest, ModelStatisticsResponse]
    ) -> ModelStatisticsResponse:
        """Answer `statistics`."""
        return await await_or_abort(context, self.statistics(request.name, request.version))

    async def RepositoryIndex(  # noqa: N802
        self,
        request: RepositoryIndexRequest,
        context: ServicerContext[RepositoryIndexRequest, RepositoryIndexResponse],
    ) -> RepositoryIndexResponse:
        """Answer `index`."""
        return await await_or_abort(context, self.index(ready=request.ready))

    async def RepositoryModelLoad(  # noqa: N802
        self,
        request: RepositoryModelLoadRequest,
        context: ServicerContext[RepositoryModelLoadRequest, RepositoryModelLoadResponse],
    ) -> RepositoryModelLoadResponse:
        """Answer `load`."""
        await await_or_abort(context, self.load(request.repository_name, request.model_name, request.parameters.keys()))
        return RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self,
        request: RepositoryModelUnloadRequest,
        context: ServicerContext[RepositoryModelUnloadRequest, RepositoryModelUnloadResponse],
    ) -> RepositoryModelUnloadResponse:
        """Answer `unload`."""
        dependents = request.parameters["unload_dependents"].bool_param if request.parameters else False
        await await_or_abort(
            context, self.unload(request.repository_name, request.model_name, unload_dependents=dependents)
        )
        return RepositoryModelUnloadResponse()

    async def TraceSetting(  # noqa: N802
        self, request: TraceSettingRequest, context: ServicerContext[TraceSettingRequest, TraceSettingResponse]
    ) -> TraceSettingResponse:
        """Answer `trace_settings`."""
        changes = {name: tuple(setting.value) for name, setting in request.settings.items()}
        settings = await answer_or_abort(context, lambda: self.trace_settings(request.model_name, changes))
        value = TraceSettingResponse.SettingValue
        return TraceSettingResponse(settings={name: value(value=values) for name, values in settings.items()})

    async def LogSettings(  # noqa: N802
        self, request: LogSettingsRequest, context: ServicerContext[LogSettingsRequest, LogSettingsResponse]
    ) -> LogSettingsResponse:
        """Answer `log_settings`."""
        settings = await answer_or_abort(context, lambda: self.log_settings(log_changes(request)))
        return log_settings_response(settings)

    async def ModelInfer(  # noqa: N802
        self, request: bytes, context: ServicerContext[ModelInferRequest, ModelInferResponse]
    ) -> ModelInferResponse:
        """Compute the logits of the images of one request, a `ModelInferRequest` that is read here."""
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
        return self._routes.first(name, version)


def _check_repository(repository: str) -> None:
    if repository:
        raise RequestError(
            f"there is no choice between repositories here, but {reprlib.repr(repository)} was named; leave it empty"
        )
