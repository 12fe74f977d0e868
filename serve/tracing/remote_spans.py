"""Spans as the processes of one server tell each other of them: bytes, in the byte order of their machine."""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from fuseline.serve.tracing.span_bytes import SPAN_BYTES, SPAN_ID_BYTES, TRACE_ID_BYTES

_BATCH = Struct(f"={SPAN_BYTES}sqqI?")


class BatchShare(NamedTuple):
    """A batch that had rows of a request."""

    span: SpanContext
    started_ns: int
    """Time of the start, in ns since 1970."""
    ended_ns: int
    rows: int
    """Number of its rows, of all requests and before padding."""
    failed: bool


class RemoteRequest:
    """A request whose spans another process makes: what the batches of this one need of it, and it of them."""

    __slots__ = ("batches", "span")

    def __init__(self, span: bytes) -> None:
        """`span` is what `bytes_of_span` made of the request's own."""
        self.span: Span = NonRecordingSpan(_span_from(span))
        self.batches: list[BatchShare] = []
        """The batches that had rows of it."""


def bytes_of_span(span: SpanContext) -> bytes:
    """Return the ids of `span`'s trace and of itself, and its flags: `SPAN_BYTES`."""
    return span.trace_id.to_bytes(TRACE_ID_BYTES) + span.span_id.to_bytes(SPAN_ID_BYTES) + span.trace_flags.to_bytes(1)


def bytes_of_batches(batches: Iterable[BatchShare]) -> bytes:
    """Return what `batches_from` reads."""
    return b"".join(
        _BATCH.pack(bytes_of_span(its.span), its.started_ns, its.ended_ns, its.rows, its.failed) for its in batches
    )


def batches_from(data: bytes) -> Iterator[BatchShare]:
    """Yield the batches that `bytes_of_batches` was given."""
    for span, *rest in _BATCH.iter_unpack(data):
        yield BatchShare(_span_from(span), *rest)


def _span_from(data: bytes) -> SpanContext:
    after_trace_id = TRACE_ID_BYTES + SPAN_ID_BYTES
    return SpanContext(
        int.from_bytes(data[:TRACE_ID_BYTES]),
        int.from_bytes(data[TRACE_ID_BYTES:after_trace_id]),
        is_remote=True,
        trace_flags=TraceFlags(data[after_trace_id]),
    )
