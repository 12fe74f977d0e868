"""What a process can answer over HTTP."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fuseline.serve.services.classify import ClassifyService
from fuseline.serve.services.open_inference import OpenInferenceService
from fuseline.serve.settings import Settings


@dataclass(frozen=True, slots=True)
class HttpServices:
    """Services of one process, which `http_app` makes an application of.

    A process that can't compute, such as the supervisor, has no inference services: their paths answer 503 there.
    """

    classify: ClassifyService | None
    open_inference: OpenInferenceService | None
    metrics: Callable[[], Awaitable[bytes]]
    """Returns the metrics in Prometheus' text format."""
    is_ready: Callable[[], bool]
    """Returns whether requests are answered now; it may be called in any thread."""
    settings: Settings
