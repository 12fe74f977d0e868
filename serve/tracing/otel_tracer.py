"""Traces by OpenTelemetry's SDK, which the extra `otel` installs. Nothing else imports it."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, set_span_in_context

from fuseline.serve.batching.batcher import BatchStats
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.tracing.remote_spans import BatchShare, RemoteRequest, bytes_of_batches
from fuseline.serve.tracing.request_spans import HttpRequestSpans, RequestSpans, failed, ns_of_ms

_CLOSE_S = 5.0
"""Longest time in seconds that an end of the process waits for the export of what is left."""

_log = logging.getLogger(__name__)

_READ_FROM_CALLERS = ("opentelemetry.baggage", "opentelemetry.trace", "opentelemetry.propagators")
"""Loggers, with those below them, that warn of each trace's context that a caller tells wrongly, in the caller's words.
Callers could fill the log so."""


class OtelTracer:
    """A `Tracer` whose spans go to a provider of OpenTelemetry."""

    def __init__(self, provider: TracerProvider) -> None:
        """Trace by `provider`, which is shut down by `close`."""
        self._provider = provider
        self._tracer = provider.get_tracer("fuseline", version("fuseline"))
        self._under_way: dict[asyncio.Future[BatchedRows], RequestSpans | RemoteRequest] = {}
        for name in _READ_FROM_CALLERS:
            logger = logging.getLogger(name)
            logger.setLevel(logger.level or logging.ERROR)

    def begin_rpc(
        self,
        service: str,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        *,
        client: str,
        request_id: str,
    ) -> RequestSpans | None:
        """See `Tracer.begin_rpc`."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": f"{service}/{method}",
        }
        span = self._server_span(f"{service}/{method}", carrier, attributes, client, request_id)
        return RequestSpans(self._tracer, span, self._under_way) if span.is_recording() else None

    def begin_http(self, scope: Mapping[str, Any], route: str, *, request_id: str) -> HttpRequestSpans | None:
        """See `Tracer.begin_http`."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        client = (scope.get("client") or ("",))[0]
        span = self._server_span(f"{scope['method']} {route}", carrier, attributes, client, request_id)
        return HttpRequestSpans(self._tracer, span, self._under_way) if span.is_recording() else None

    def count_batch(self, model: str, stats: BatchStats) -> None:
        """See `Tracer.count_batch`.

        The span belongs to the trace of the batch's first sampled request, so that it is sampled as that is, and links
        to the spans of all of them.
        """
        traces = [trace for request, _, _ in stats.shares if (trace := self._under_way.get(request)) is not None]
        if not traces:
            return
        started_ns = round(1e9 * stats.started) + time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            "batch",
            set_span_in_context(traces[0].span),
            attributes={
                "fuseline.model": model,
                "fuseline.batch.rows": stats.rows,
                "fuseline.batch.bucket": stats.bucket,
                "fuseline.batch.lane": stats.lane,
                "fuseline.batch.reason": stats.reason,
                "fuseline.batch.requests": len(stats.shares),
            },
            links=[Link(trace.span.get_span_context()) for trace in traces],
            start_time=started_ns,
        )
        if stats.failed:
            failed(span, "batch failed")
        ended_ns = started_ns + ns_of_ms(stats.compute_ms)
        span.end(ended_ns)
        share = BatchShare(span.get_span_context(), started_ns, ended_ns, stats.rows, stats.failed)
        for trace in traces:
            trace.batches.append(share)

    def follow(self, pending: asyncio.Future[BatchedRows], span: bytes) -> None:
        """See `Tracer.follow`."""
        self._under_way[pending] = RemoteRequest(span)

    def batches_of(self, pending: asyncio.Future[BatchedRows]) -> bytes:
        """See `Tracer.batches_of`."""
        followed = self._under_way.pop(pending, None)
        return b"" if followed is None else bytes_of_batches(followed.batches)

    def close(self) -> None:
        """See `Tracer.close`."""
        # The SDK waits for a collector that doesn't answer for as long as its exporter tries.
        closing = threading.Thread(target=self._provider.shutdown, name="fuseline-otel-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            _log.warning("the last traces were not exported within %g s and are given up", _CLOSE_S)

    def _server_span(
        self, name: str, carrier: dict[str, str], attributes: dict[str, str], client: str, request_id: str
    ) -> Span:
        if client:
            attributes["client.address"] = client
        if request_id:
            attributes["fuseline.request_id"] = request_id
        return self._tracer.start_span(
            name, propagate.extract(carrier, Context()), kind=SpanKind.SERVER, attributes=attributes
        )


def tracer_from_environment(
    exporters: Sequence[str], process: str, environment: Mapping[str, str]
) -> OtelTracer | None:
    """Return a tracer for the exporters of these names; None, with a line in the log, if none of them is there.

    Sampler, limits, queue and endpoints are those of the variables that OpenTelemetry's specification names.
    """
    opened = [exporter for name in exporters if (exporter := _exporter(name, environment)) is not None]
    if not opened:
        return None
    provider = TracerProvider(resource=resource_of(process), shutdown_on_exit=False)
    for exporter in opened:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    _log.info("requests are traced, by %s", " and ".join(exporters))
    return OtelTracer(provider)


def resource_of(process: str) -> Resource:
    """Return what the environment says of this service, whose name is "fuseline" where it says none."""
    resource = Resource.create()
    own = {SERVICE_VERSION: version("fuseline")} | ({"fuseline.process": process} if process else {})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        own[SERVICE_NAME] = "fuseline"
    return Resource(own).merge(resource) if SERVICE_NAME not in own else resource.merge(Resource(own))


def _exporter(name: str, environment: Mapping[str, str]) -> SpanExporter | None:
    """Return a new exporter by its name in OTEL_TRACES_EXPORTER; None if it is not installed or can't be made."""
    if name == "otlp":
        protocol = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        name = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, protocol)
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        _log.warning(
            "OTEL_* asks for the exporter of traces %r, which is not installed: nothing goes there; pip install "
            "'fuseline[otel]' has otlp over http/protobuf and grpc",
            name,
        )
        return None
    try:
        exporter: SpanExporter = found.load()()
    except Exception as error:  # noqa: BLE001 an exporter of anyone's; a server serves without it
        _log.warning("the exporter of traces %r can't be opened: %s: %s", name, type(error).__name__, error)
        return None
    return exporter
