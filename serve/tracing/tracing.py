"""What the server notes of its requests and batches for traces, and whether it does at all."""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from grpc import StatusCode

from fuseline.serve.batching.batcher import BatchStats
from fuseline.serve.batching.requests import BatchedRows

BACKEND = "backend"
"""Title of the process that computes for others."""

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_log = logging.getLogger(__name__)


class RequestTrace(Protocol):
    """Notes where the time of one request goes. Every method is called on the event loop and returns at once."""

    @property
    def trace_id(self) -> str:
        """Id of the trace that the request belongs to: 32 hexadecimal digits; empty: it belongs to none."""
        ...

    @property
    def span_bytes(self) -> bytes:
        """What another process knows the request's span by: `SPAN_BYTES`."""
        ...

    def batched(self, batches: bytes) -> None:
        """Note the batches that another process computed for the request, as its `Tracer.batches_of` told them."""
        ...

    def decoded(self, seconds: float) -> None:
        """Note that the request's images have just been decoded, which took so long."""
        ...

    def submitted(self, pending: asyncio.Future[BatchedRows]) -> None:
        """Note that the batcher has just admitted the request, whose answer is `pending`."""
        ...

    def end(self, code: StatusCode, model: str, batched: BatchedRows | None) -> None:
        """End the trace of a request that was answered with `code`; `model` is empty where none was found."""
        ...


class HttpTrace(RequestTrace, Protocol):
    """The trace of a request that came over HTTP: it ends with the answer's status, after `end`."""

    def answered(self, status: int | None) -> None:
        """End the request's span; `status` is None if there was no answer."""
        ...


class Tracer(Protocol):
    """Makes the traces of one process. Everything but `close` happens on the event loop and returns at once."""

    def begin_rpc(
        self,
        service: str,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        *,
        client: str,
        request_id: str,
    ) -> RequestTrace | None:
        """Begin the trace of a request that came over gRPC; None: it is not sampled."""
        ...

    def begin_http(self, scope: Mapping[str, Any], route: str, *, request_id: str) -> HttpTrace | None:
        """Begin the trace of a request that came over HTTP, for the path `route`; None: it is not sampled."""
        ...

    def count_batch(self, model: str, stats: BatchStats) -> None:
        """Make the span of a batch that has just ended."""
        ...

    def follow(self, pending: asyncio.Future[BatchedRows], span: bytes) -> None:
        """Link batches to a request of another process, until `batches_of`; `span` is its trace's."""
        ...

    def batches_of(self, pending: asyncio.Future[BatchedRows]) -> bytes:
        """Return what the trace of a request that was followed is to note; empty: it had no batch, or wasn't."""
        ...

    def close(self) -> None:
        """Export what is left, and return then or after some seconds. It may be called in any thread."""
        ...


def open_tracer(process: str = "", environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """Return what traces the requests of this process, or None if the environment doesn't ask for traces.

    It asks by OTEL_TRACES_EXPORTER, or by an endpoint for OTLP, as the OpenTelemetry specification names them. If
    OpenTelemetry is not installed the log says so, and nothing is traced. `process` is the title of a process that
    shares the work with others, for the traces' resource.
    """
    exporters = wanted_exporters(environment)
    if not exporters:
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        # Of several processes one says it.
        if process in {"", BACKEND}:
            _log.warning(
                "OTEL_* asks for traces, but OpenTelemetry is not installed: nothing is traced; pip install "
                "'fuseline[otel]', or set OTEL_SDK_DISABLED=true"
            )
        return None
    from fuseline.serve.tracing.otel_tracer import tracer_from_environment

    return tracer_from_environment(exporters, process, environment)


def wanted_exporters(environment: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the exporters of traces that the environment asks for; none: it asks for no traces.

    An empty variable counts as one that is not set, as the specification says.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    names = [name.strip() for name in environment.get(_EXPORTER, "").split(",") if name.strip()]
    if not names and any(environment.get(endpoint) for endpoint in _ENDPOINTS):
        return ("otlp",)
    return () if "none" in names else tuple(names)
