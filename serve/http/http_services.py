"""What an HTTP application answers from."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fuseline.serve.errors import BackendLostError
from fuseline.serve.services.classify import ClassifyService
from fuseline.serve.services.open_inference import OpenInferenceService
from fuseline.serve.settings import Settings


@dataclass(frozen=True, slots=True)
class HttpServices:
    """What an HTTP application answers from."""

    classify: ClassifyService | None
    open_inference: OpenInferenceService | None
    metrics: Callable[[], Awaitable[bytes]]
    is_ready: Callable[[], bool]
    settings: Settings


def open_inference_of(services: HttpServices) -> OpenInferenceService:
    """Return the service of the Open Inference Protocol. Raises `BackendLostError` where this process has none."""
    if services.open_inference is None:
        raise BackendLostError(_NOT_HERE)
    return services.open_inference


def classify_of(services: HttpServices) -> ClassifyService:
    """Return the service that classifies. Raises `BackendLostError` where this process has none."""
    if services.classify is None:
        raise BackendLostError(_NOT_HERE)
    return services.classify


_NOT_HERE = "the server can't answer this request at the moment; send it again"
