"""What answers requests in one process, whichever doors they come by: models, services, liveness and health."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from fuseline.protos.classify_pb2_grpc import add_ClassifierServicer_to_server
from fuseline.protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from fuseline.serve.access.gate import Gate
from fuseline.serve.liveness import Liveness
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from fuseline.serve.model_control.control import ModelControl
from fuseline.serve.model_control.fixed_models import FixedModels
from fuseline.serve.model_source import ModelSource
from fuseline.serve.process.memory import keep_freed_memory
from fuseline.serve.repository import Repository
from fuseline.serve.routing.from_settings import routes_of, shadows_of
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.classify import SERVICE_NAME, ClassifyService
from fuseline.serve.services.health import HealthService
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.open_inference import SERVICE_NAME as OPEN_INFERENCE_SERVICE_NAME
from fuseline.serve.services.open_inference import OpenInferenceService
from fuseline.serve.settings import Settings
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registrar import LocalRegistrar, Registrar

if TYPE_CHECKING:
    from fuseline.serve.console.console import Console
    from fuseline.serve.http.http_services import HttpServices

_QUIET_S = 0.1
"""Seconds without a call after which none is taken to be on its way to a server that drains."""
_MOST_QUIETS = 20


class ServerCore:
    """The models of a source and the services that answer for them. Everything happens on one event loop.

    Call `load`, then `finish`, then `close`, each once.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        metrics: Metrics,
        *,
        registrar: Registrar | None = None,
        control: ModelControl | None = None,
    ) -> None:
        """Answer for the models of `source`, and count requests in `metrics`.

        `control` loads and unloads models by request; None: they stay as they are. `registrar` registers the memory
        that clients share; None: it is known to this process alone.
        """
        self.repository = Repository()
        self.ready = False
        """Whether requests are taken, as far as whoever has the doors knows."""
        self._settings = settings
        self._source = source
        self._metrics = metrics
        self._decode_pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="fuseline-decode")
        self._gate = None if settings.token_hashes is None else Gate(settings.token_hashes, metrics.count_access)
        self._health = HealthService(lambda: self.liveness.is_live)
        image_rows = ImageRows(self._decode_pool, settings)
        limits = CallLimits(settings)
        self._routes = routes_of(settings, self.repository, metrics.registry)
        self._shadows = shadows_of(settings, self.repository, metrics.registry)
        self._service = ClassifyService(
            self.repository,
            image_rows,
            metrics,
            settings,
            limits=limits,
            routes=self._routes,
            shadows=self._shadows,
        )
        if registrar is None:
            registrar = LocalRegistrar(SharedMemoryRegions(settings.why_no_shared_memory))
        self._open_inference = OpenInferenceService(
            self.repository,
            image_rows,
            metrics,
            settings,
            registrar,
            statistics=source.statistics,
            control=control or FixedModels(self.repository),
            limits=limits,
            routes=self._routes,
            shadows=self._shadows,
        )
        if settings.triton_metrics:
            metrics.registry.register(TritonMetrics(metrics))
        self.liveness = Liveness(
            lambda: (model.batcher for model in self.repository), settings.backend_timeout_s, self._note_stall
        )
        """Tells whether the event loop turns and the backend computes."""
        self._open_inference.is_live = lambda: self.liveness.is_live
        self._living: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether requests are computed now: the server is ready, and has a backend that makes progress."""
        return self.ready and self._open_inference.has_backend and self.liveness.is_live

    @property
    def gate(self) -> Gate | None:
        """What knows the tokens; None: none is asked for."""
        return self._gate

    @property
    def is_loading(self) -> bool:
        """Whether a thread loads a model, which nothing can interrupt."""
        return self._source.is_loading

    def watch_liveness(self) -> None:
        """Watch the running event loop and the batchers from now on."""
        self._living = asyncio.create_task(self.liveness.run())

    async def load(self) -> None:
        """Load and warm every model; then health says that they serve.

        Raises:
            InputError: a folder is no sound package, or two have the same name; or an alias or a shadow doesn't fit the
                models.
            BackendUnavailableError: the asked-for backend can't run here.
        """
        await self._source.load(self.repository)
        models_come = self._settings.model_control_mode != "none"
        self._routes.check(models_come=models_come)
        if self._shadows is not None:
            self._shadows.check(self._routes, models_come=models_come)
        keep_freed_memory()
        await self.set_health(serving=True)

    async def finish(self) -> None:
        """Admit nothing more, and answer what was admitted.

        Health turns NOT_SERVING first. Requests whose images are still being decoded are admitted already.
        Raises `TimeoutError` when answers are still owed after `drain_timeout_s`; they are given up.
        """
        self.ready, counted = False, self._metrics.requests_by_code()
        await self._health.enter_graceful_shutdown()
        async with asyncio.timeout(self._settings.drain_timeout_s):
            self._service.refuse()
            self._open_inference.refuse()
            if self._shadows is not None:
                await self._shadows.stop()
            await asyncio.gather(self._source.close(), self.repository.close())
            await self._service.idle()
            await self._open_inference.idle()
        if self._metrics.requests_by_code() != counted:
            await self._refuse_stragglers()

    def stop_watching(self) -> None:
        """Watch no more whether there is progress."""
        if self._living is not None:
            self._living.cancel()

    async def close(self) -> None:
        """Release what is left. What is still being decoded is given up."""
        self.stop_watching()
        self._decode_pool.shutdown(wait=False, cancel_futures=True)
        if self._metrics.tracer is not None:
            await asyncio.to_thread(self._metrics.tracer.close)

    async def _refuse_stragglers(self) -> None:
        """Refuse what clients have sent before they heard of the drain, until nothing has come for a moment.

        A call that no handler has seen once gRPC stops gets CANCELLED, which tells no client to send it elsewhere.
        """
        for _ in range(_MOST_QUIETS):
            refused = self._metrics.requests_by_code().get("UNAVAILABLE", 0)
            await asyncio.sleep(_QUIET_S)
            if self._metrics.requests_by_code().get("UNAVAILABLE", 0) == refused:
                return

    async def set_health(self, *, serving: bool) -> None:
        """Let health checks and readiness report whether the models can be computed now."""
        self._open_inference.has_backend = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE_NAME, OPEN_INFERENCE_SERVICE_NAME):
            await self._health.set(service, status)

    async def _note_stall(self, serving: bool) -> None:
        await self.set_health(serving=serving and self.ready)

    def http_services(self, console: "Console | None" = None) -> "HttpServices":
        """Return what HTTP answers by, with `console` behind its page."""
        # A server without HTTP starts the sooner by what starlette and uvicorn take to import.
        from fuseline.serve.http.http_services import HttpServices

        return HttpServices(
            self._service,
            self._open_inference,
            self._source.metrics,
            lambda: self.serves,
            self._settings,
            self._gate,
            is_live=lambda: self.liveness.is_live,
            tracer=self._metrics.tracer,
            console=console,
        )

    def add_services(self, server: Any) -> None:
        """Add both protocols and the health service to what takes services, as generated code does."""
        add_ClassifierServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]
        add_GRPCInferenceServiceServicer_to_server(self._open_inference, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
