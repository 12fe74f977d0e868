"""The spans of one request: its own, of kind server, and one for each step of its life."""

import asyncio
import time

from grpc import StatusCode
from opentelemetry.trace import Link, Span, Status, Tracer, set_span_in_context
from opentelemetry.trace import StatusCode as SpanStatusCode

from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.tracing.remote_spans import BatchShare, RemoteRequest, batches_from, bytes_of_span

_SERVERS_FAULT = frozenset(
    (
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    )
)
"""Codes by which a server's span counts as failed, by OpenTelemetry's conventions for gRPC."""


class RequestSpans:
    """A `RequestTrace`. The request's own span has begun; the others are made at its end, from what was noted."""

    def __init__(
        self, tracer: Tracer, span: Span, under_way: "dict[asyncio.Future[BatchedRows], RequestSpans | RemoteRequest]"
    ) -> None:
        """`span` is the request's own; `under_way` has the traces of requests that a batcher has, by their answer."""
        self.span = span
        self.batches: list[BatchShare] = []
        """The batches that had rows of this request, as far as they are known."""
        self._tracer = tracer
        self._under_way = under_way
        self._pending: asyncio.Future[BatchedRows] | None = None
        self._decoded: tuple[int, int] | None = None
        self._submitted_ns = 0

    @property
    def trace_id(self) -> str:
        """See `RequestTrace.trace_id`."""
        return f"{self.span.get_span_context().trace_id:032x}"

    @property
    def span_bytes(self) -> bytes:
        """See `RequestTrace.span_bytes`."""
        return bytes_of_span(self.span.get_span_context())

    def batched(self, batches: bytes) -> None:
        """See `RequestTrace.batched`."""
        self.batches += batches_from(batches)

    def decoded(self, seconds: float) -> None:
        """See `RequestTrace.decoded`."""
        now = time.time_ns()
        self._decoded = now - round(1e9 * seconds), now

    def submitted(self, pending: asyncio.Future[BatchedRows]) -> None:
        """See `RequestTrace.submitted`."""
        self._submitted_ns = time.time_ns()
        self._pending = pending
        self._under_way[pending] = self

    def end(self, code: StatusCode, model: str, batched: BatchedRows | None) -> None:
        """See `RequestTrace.end`."""
        self._make_steps(batched)
        span = self.span
        span.set_attribute("rpc.response.status_code", code.name)
        span.set_attribute("rpc.grpc.status_code", int(code.value[0]))
        self._describe(model, batched)
        if code in _SERVERS_FAULT:
            failed(span, code.name)
        span.end()

    def _describe(self, model: str, batched: BatchedRows | None) -> None:
        if model:
            self.span.set_attribute("fuseline.model", model)
        if batched is not None:
            self.span.set_attribute("fuseline.rows", len(batched.logits))

    def _make_steps(self, batched: BatchedRows | None) -> None:
        if self._decoded is not None:
            self._step("decode", *self._decoded)
        # A stand-in's future knows this trace, which shall not keep it in turn.
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._under_way.pop(pending, None)
        now = time.time_ns()
        queued_until = now
        if batched is not None:
            queued_until = min(now, self._submitted_ns + ns_of_ms(batched.queue_ms))
        elif self.batches:
            queued_until = max(share.started_ns for share in self.batches)
        self._step("queue", self._submitted_ns, max(queued_until, self._submitted_ns))
        for share in self.batches:
            compute = self._begin_step("compute", share.started_ns, Link(share.span))
            compute.set_attribute("fuseline.batch.rows", share.rows)
            if share.failed:
                failed(compute, "batch failed")
            compute.end(share.ended_ns)
        if batched is not None and not self.batches:
            # Another process computed the batches, and traces nothing; it says how long they took.
            compute = self._begin_step("compute", queued_until)
            compute.set_attribute("fuseline.batch.rows", batched.batch_rows)
            compute.end(min(now, queued_until + ns_of_ms(batched.compute_ms)))

    def _step(self, name: str, started_ns: int, ended_ns: int) -> None:
        self._begin_step(name, started_ns).end(ended_ns)

    def _begin_step(self, name: str, started_ns: int, *links: Link) -> Span:
        return self._tracer.start_span(name, set_span_in_context(self.span), start_time=started_ns, links=links)


class HttpRequestSpans(RequestSpans):
    """An `HttpTrace`."""

    def end(self, code: StatusCode, model: str, batched: BatchedRows | None) -> None:  # noqa: ARG002
        """See `RequestTrace.end`; the request's own span goes on."""
        self._make_steps(batched)
        self._describe(model, batched)

    def answered(self, status: int | None) -> None:
        """See `HttpTrace.answered`."""
        if status is None:
            failed(self.span, "cancelled")
        else:
            self.span.set_attribute("http.response.status_code", status)
            if status >= 500:
                failed(self.span, str(status))
        self.span.end()


def failed(span: Span, error_type: str) -> None:
    """Mark `span` as that of something that failed."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(SpanStatusCode.ERROR))


def ns_of_ms(ms: float) -> int:
    """Return milliseconds as nanoseconds."""
    return round(1e6 * ms)
