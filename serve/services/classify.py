"""fuseline.v1.Classifier: images in, classes out."""

import time
from collections.abc import AsyncIterator, Callable

from grpc.aio import ServicerContext

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, GetModelResponse
from fuseline.protos.classify_pb2_grpc import ClassifierServicer
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.repository import Repository
from fuseline.serve.routing.routes import Routes
from fuseline.serve.routing.shadows import Shadows
from fuseline.serve.services.call_context import NO_CONTEXT, CallContext
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.calls import answer_or_abort
from fuseline.serve.services.classify_codec import ClassifyCodec, stream_message
from fuseline.serve.services.description import response_from_model
from fuseline.serve.services.image_rows import ImageRows
from fuseline.serve.services.inference_calls import InferenceCalls
from fuseline.serve.services.statuses import Status
from fuseline.serve.settings import Settings

SERVICE_NAME = "fuseline.v1.Classifier"


class ClassifyService(ClassifierServicer):
    """Answers classify.proto's methods for the models of a repository, as `InferenceCalls` guarantees."""

    def __init__(
        self,
        repository: Repository,
        image_rows: ImageRows,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        *,
        limits: CallLimits | None = None,
        routes: Routes | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        """Answer from `repository`. `clock` is the batchers' own, on which deadlines are.

        `limits` is as for `InferenceCalls`. `routes` are to models of `repository`; None: there are no aliases.
        `shadows` sample the requests.
        """
        self._routes = Routes(repository) if routes is None else routes
        self._settings = settings
        self._codec = ClassifyCodec(self._routes.finder, image_rows)
        self._calls = InferenceCalls(metrics, settings, clock, limits=limits, shadows=shadows, service=SERVICE_NAME)

    async def Classify(  # noqa: N802
        self, request: bytes, context: ServicerContext[ClassifyRequest, ClassifyResponse]
    ) -> ClassifyResponse:
        """Classify the images of one request, a `ClassifyRequest` that is read here."""
        return await self._calls.answer("Classify", self._codec, request, context)

    async def classify(
        self, method: str, request: ClassifyRequest, call: CallContext = NO_CONTEXT
    ) -> ClassifyResponse | Status:
        """Return the answer to `request`, counted under `method`, or the status of the error."""
        return await self._calls.run(method, self._codec, request, call)

    async def ClassifyStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[ClassifyRequest],
        context: ServicerContext[ClassifyRequest, ClassifyResponse],
    ) -> None:
        """Classify requests as they come; each answer is written as soon as it is there."""
        await self._calls.stream(
            "ClassifyStream", self._codec, request_iterator, context, stream_message, in_order=False
        )

    async def GetModel(  # noqa: N802
        self, request: GetModelRequest, context: ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe one model, and the limits of this server."""
        return await answer_or_abort(context, lambda: self.describe(request.model, request.version))

    def describe(self, name: str, version: str = "") -> GetModelResponse:
        """Describe a model, or the only one, and the server's limits; an alias by its first target that is served.

        Raises `UnknownModelError`.
        """
        model = self._routes.first(name, version)
        described = response_from_model(model, self._settings)
        if name not in {"", model.name}:
            described.name, described.served_model = name, model.name
        return described

    def model_names(self) -> list[str]:
        """Return the names of the served models."""
        return list(dict.fromkeys(model.name for model in self._routes))

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names that lead to served models."""
        return self._routes.aliases

    def refuse(self) -> None:
        """Refuse new calls from now on, and read no further from streams."""
        self._calls.refuse()

    async def idle(self) -> None:
        """Return, after `refuse`, once every request that came before has its answer."""
        await self._calls.idle()
