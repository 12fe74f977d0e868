"""Spans of requests in workers and of their batches in the backend, joined in one process."""

from typing import cast

import numpy as np
import pytest
from grpc import StatusCode
from numpy.typing import NDArray
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode as SpanStatusCode

from fuseline.serve.errors import BackendError
from fuseline.serve.tracing.otel_tracer import OtelTracer
from fuseline.serve.tracing.request_spans import RequestSpans
from tests.serve.workers.test_remote_batcher import JoinedWorkers, row, settle


class Traced:
    """A tracer of one process, and the spans that ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = OtelTracer(provider)

    def begin(self) -> RequestSpans:
        trace = self.tracer.begin_rpc("S", "M", (), client="", request_id="r")
        assert trace is not None
        return trace

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def worker() -> Traced:
    return Traced()


@pytest.fixture
def backend() -> Traced:
    return Traced()


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    return cast("int", span.context.span_id)


async def test_requests_of_several_workers_that_share_a_batch_are_all_linked_with_it(
    worker: Traced, backend: Traced
) -> None:
    joined = JoinedWorkers(workers=2, tracer=backend.tracer)
    traces = [worker.begin(), worker.begin()]
    requests = [remote.submit([row(1)], trace=trace) for remote, trace in zip(joined.remotes, traces, strict=True)]
    untraced = joined.remotes[0].submit([row(2)])
    for trace, request in zip(traces, requests, strict=True):
        trace.submitted(request)
    await joined.run_batch()
    await untraced
    for trace, request in zip(traces, requests, strict=True):
        trace.end(StatusCode.OK, "m", await request)
    (batch,) = backend.named("batch")
    of_requests = worker.named("S/M")
    assert sorted(linked(batch)) == sorted(map(id_of, of_requests))
    assert batch.parent is not None
    assert batch.parent.span_id == linked(batch)[0]
    assert (batch.attributes or {})["fuseline.batch.requests"] == 3
    computes = worker.named("compute")
    assert [linked(span) for span in computes] == [[id_of(batch)]] * 2
    assert {(span.start_time, span.end_time) for span in computes} == {(batch.start_time, batch.end_time)}
    assert worker.tracer._under_way == backend.tracer._under_way == {}


async def test_a_request_of_several_batches_is_told_each_of_them(worker: Traced, backend: Traced) -> None:
    joined = JoinedWorkers(tracer=backend.tracer)
    trace = worker.begin()
    request = joined.remotes[0].submit([row(value) for value in range(6)], trace=trace)
    trace.submitted(request)
    for _ in range(2):
        await joined.run_batch()
    trace.end(StatusCode.OK, "m", await request)
    assert [linked(span) for span in worker.named("compute")] == [[id_of(span)] for span in backend.named("batch")]
    assert [(span.attributes or {})["fuseline.batch.rows"] for span in worker.named("compute")] == [4, 2]


async def test_a_request_whose_batch_failed_says_so_and_links_to_it(worker: Traced, backend: Traced) -> None:
    def broken(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("broken")

    joined = JoinedWorkers(tracer=backend.tracer)
    joined.infer = broken
    trace = worker.begin()
    request = joined.remotes[0].submit([row(1)], trace=trace)
    trace.submitted(request)
    await joined.run_batch()
    with pytest.raises(BackendError):
        await request
    trace.end(StatusCode.INTERNAL, "m", None)
    (batch,), (compute,) = backend.named("batch"), worker.named("compute")
    assert linked(compute) == [id_of(batch)]
    assert batch.status.status_code is compute.status.status_code is SpanStatusCode.ERROR


async def test_nothing_is_left_of_a_request_that_was_cancelled_refused_or_whose_worker_went(
    worker: Traced, backend: Traced
) -> None:
    joined = JoinedWorkers(tracer=backend.tracer)
    remote = joined.remotes[0]
    remote.submit([row(1)], trace=worker.begin()).cancel()
    await settle()
    full = [remote.submit([row(1)], trace=worker.begin()) for _ in range(13)]
    await settle()
    refused = [request for request in full if request.done() and isinstance(request.exception(), Exception)]
    assert refused
    joined.requests[0].disconnect()
    joined.connections[0].connection_lost(None)
    await joined.run_batch()
    assert all(isinstance(request.exception(), Exception) for request in full)
    assert backend.tracer._under_way == {}


async def test_without_tracing_in_one_process_the_other_s_records_are_as_short_as_ever(worker: Traced) -> None:
    plain, traced = JoinedWorkers(), JoinedWorkers()
    sent: dict[JoinedWorkers, list[bytes]] = {plain: [], traced: []}
    for joined in (plain, traced):
        joined.held = []
    trace = worker.begin()
    requests = {plain: plain.remotes[0].submit([row(1)]), traced: traced.remotes[0].submit([row(1)], trace=trace)}
    for joined in (plain, traced):
        await joined.run_batch()
        assert joined.held is not None
        sent[joined] = [data for _, data in joined.held]
        held, joined.held = joined.held, None
        for connection, data in held:
            connection.data_received(data)
    assert [len(data) for data in sent[plain]] == [len(data) for data in sent[traced]]
    trace.submitted(requests[traced])
    trace.end(StatusCode.OK, "m", await requests[traced])
    # Of a backend that traces nothing the times are known.
    (compute,) = worker.named("compute")
    assert compute.links == ()
