"""What a process can answer over HTTP."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from grpc import StatusCode

from fuseline.serve.access.gate import Gate
from fuseline.serve.console.console import Console
from fuseline.serve.errors import BackendLostError
from fuseline.serve.services.classify import ClassifyService
from fuseline.serve.services.open_inference import OpenInferenceService
from fuseline.serve.services.statuses import Status, status_from_error
from fuseline.serve.settings import Settings
from fuseline.serve.tracing.tracing import Tracer


@dataclass(frozen=True, slots=True)
class HttpServices:
    """Services of one process, which `http_app` makes an application of.

    A process that can't compute, such as the supervisor, has no inference services: their paths answer 503 there.
    """

    classify: ClassifyService | None
    open_inference: OpenInferenceService | None
    metrics: "MetricsText"
    """Returns the metrics."""
    is_ready: Callable[[], bool]
    """Returns whether requests are answered now; it may be called in any thread."""
    settings: Settings
    gate: Gate | None = None
    """Knows the tokens; None: none is asked for."""
    is_live: Callable[[], bool] = lambda: True
    """Returns whether progress is made, or else the server is to be started again; it may be called in any thread."""
    tracer: Tracer | None = None
    """What traces requests of inference; None: nothing does."""
    console: Console | None = None
    """What the page is answered from, where the settings have one; None: this process can't answer it."""


class MetricsText(Protocol):
    """Returns the metrics of a server in Prometheus' text format, or in OpenMetrics."""

    def __call__(self, *, open_metrics: bool = False) -> Awaitable[bytes]:
        """See `ModelSource.metrics`."""
        ...


def open_inference_of(services: HttpServices) -> OpenInferenceService:
    """Return the service of the Open Inference Protocol. Raises `BackendLostError` where this process has none."""
    if services.open_inference is None:
        raise _not_here()
    return services.open_inference


def classify_of(services: HttpServices) -> ClassifyService:
    """Return the service that classifies. Raises `BackendLostError` where this process has none."""
    if services.classify is None:
        raise _not_here()
    return services.classify


def console_of(services: HttpServices) -> Console:
    """Return what the page is answered from. Raises `BackendLostError` where this process has nothing of it."""
    if services.console is None:
        raise _not_here()
    return services.console


def status_now(services: HttpServices, status: Status) -> Status:
    """Return the status that is true of `status` now: a model may be missing only because it is not loaded yet."""
    if status.code is StatusCode.NOT_FOUND and not services.is_ready():
        return status_from_error(BackendLostError(f"{status.message}; its models are not ready, so send this again"))
    return status


def _not_here() -> BackendLostError:
    return BackendLostError("the server can't answer this at the moment; send it again")
