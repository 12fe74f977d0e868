"""Spans of requests and batches, in a server of this event loop, by OpenTelemetry's own exporter to memory."""

import asyncio
from http.client import HTTPConnection
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind
from opentelemetry.trace import StatusCode as SpanStatusCode

import fuseline.serve.server
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.tracing import request_spans
from fuseline.serve.tracing.otel_tracer import OtelTracer
from tests.fakes.colours import encoded, noise, plain
from tests.serve.conftest import StartServer
from tests.serve.failures import refusal
from tests.serve.processes import free_port
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
CLASSIFY = "fuseline.v1.Classifier/Classify"


def failing(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise RuntimeError("broken")


class Traces:
    """The spans that ended since the start."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def children(self, parent: ReadableSpan) -> list[str]:
        return [span.name for span in self.all() if span.parent and span.parent.span_id == parent.context.span_id]


def traced_by(monkeypatch: pytest.MonkeyPatch, sampler: Sampler | None = None) -> Traces:
    """Have the servers that start from now on trace to memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(fuseline.serve.server, "open_tracer", lambda: OtelTracer(provider))
    return Traces(exporter)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return traced_by(monkeypatch)


async def test_a_request_has_a_span_by_the_conventions_below_its_caller_s(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    call = served.stub.Classify(raw_request(noise(3)), metadata=(("traceparent", PARENT), ("x-request-id", "r-1")))
    await call
    server = traces.one(CLASSIFY)
    assert server.kind is SpanKind.SERVER
    assert f"{server.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.attributes is not None
    assert dict(server.attributes) == {
        "rpc.system": "grpc",
        "rpc.system.name": "grpc",
        "rpc.service": "fuseline.v1.Classifier",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
        "rpc.grpc.status_code": 0,
        "client.address": server.attributes["client.address"],
        "fuseline.request_id": "r-1",
        "fuseline.model": "colours",
        "fuseline.rows": 3,
    }
    assert server.status.status_code is SpanStatusCode.UNSET


async def test_what_a_caller_tells_wrongly_of_its_trace_leaves_no_line_in_the_log(
    start_server: StartServer, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    served = await start_server()
    for wrong in (("tracestate", "@@,=,a"), ("baggage", "a=b;,c d,="), ("baggage", "a=" + "b" * 9000)):
        await served.stub.Classify(raw_request(noise(1)), metadata=(("traceparent", PARENT), wrong))
    await served.stub.Classify(raw_request(noise(1)), metadata=(("traceparent", "00-nonsense"),))
    assert len(traces.named(CLASSIFY)) == 4
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_decode_queue_and_compute_follow_each_other_within_the_request(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    await served.stub.Classify(ClassifyRequest(images=[Image(encoded=encoded(plain("red")))]))
    server = traces.one(CLASSIFY)
    decode, queue, compute = (traces.one(name) for name in ("decode", "queue", "compute"))
    times = [server.start_time, decode.start_time, decode.end_time, queue.start_time, queue.end_time]
    assert None not in times
    assert sorted(times, key=lambda time: time or 0) == times
    # The batcher's clock and the wall's are read one after the other.
    assert abs((compute.start_time or 0) - (queue.end_time or 0)) < 2_000_000
    assert (compute.end_time or 0) <= (server.end_time or 0)
    assert {*traces.children(server)} >= {"decode", "queue", "compute"}


async def test_a_batch_links_to_its_requests_and_each_request_s_compute_links_to_it(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    held = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    waiting = [served.stub.Classify(raw_request(noise(2, seed))) for seed in range(3)]
    await served.until(lambda: served.queued_rows == 6)
    served.backend.release()
    await asyncio.gather(held, *waiting)
    batch = next(span for span in traces.named("batch") if (span.attributes or {})["fuseline.batch.rows"] == 6)
    assert batch.attributes is not None
    assert {name: batch.attributes[f"fuseline.batch.{name}"] for name in ("bucket", "requests", "lane")} == {
        "bucket": 6,
        "requests": 3,
        "lane": 0,
    }
    assert batch.attributes["fuseline.batch.reason"] in {"next", "idle"}
    linked = {link.context.span_id for link in batch.links}
    of_requests = [span for span in traces.named(CLASSIFY) if (span.attributes or {})["fuseline.rows"] == 2]
    assert linked == {span.context.span_id for span in of_requests}
    computes = [span for span in traces.named("compute") if span.parent and span.parent.span_id in linked]
    assert len(computes) == 3
    assert {link.context.span_id for span in computes for link in span.links} == {batch.context.span_id}
    assert {(span.start_time, span.end_time) for span in computes} == {(batch.start_time, batch.end_time)}


async def test_a_request_of_several_batches_has_the_compute_of_each(start_server: StartServer, traces: Traces) -> None:
    served = await start_server(max_batch=4)
    await served.stub.Classify(raw_request(noise(10)))
    assert len(traces.named("batch")) == len(traces.named("compute")) == 3
    assert {link.context.span_id for span in traces.named("compute") for link in span.links} == {
        span.context.span_id for span in traces.named("batch")
    }


async def test_a_request_that_fails_says_so_and_a_refused_one_has_no_steps(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    code, _ = await refusal(served.stub.Classify(ClassifyRequest(model="cats")))
    assert code is grpc.StatusCode.NOT_FOUND
    bad = traces.one(CLASSIFY)
    assert (bad.attributes or {})["rpc.response.status_code"] == "NOT_FOUND"
    # The client's fault is no error of the server's, by the conventions.
    assert bad.status.status_code is SpanStatusCode.UNSET
    assert traces.children(bad) == []
    served.backend.replacement = failing
    code, _ = await refusal(served.stub.Classify(raw_request(noise(1))))
    assert code is grpc.StatusCode.INTERNAL
    failed = traces.named(CLASSIFY)[-1]
    assert failed.status.status_code is SpanStatusCode.ERROR
    assert traces.one("batch").status.status_code is SpanStatusCode.ERROR
    assert sorted(traces.children(failed)) == ["batch", "compute", "queue"]


async def test_each_request_of_a_stream_has_a_span_below_the_stream_s_caller(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    stub = GRPCInferenceServiceStub(served.channel)
    requests = [infer_request(noise(1, seed)) for seed in range(3)]
    call = stub.ModelStreamInfer(iter(requests), metadata=(("traceparent", PARENT),))
    assert len([answer async for answer in call]) == 3
    spans = traces.named("inference.GRPCInferenceService/ModelStreamInfer")
    assert len(spans) == 3
    assert {f"{span.parent.span_id:016x}" for span in spans if span.parent} == {"b7ad6b7169203331"}
    assert len({(span.attributes or {})["fuseline.request_id"] for span in spans}) == 1


async def test_without_knowledge_of_the_batches_compute_is_as_long_as_the_backend_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter((10**18, 10**18 + 10**9))
    monkeypatch.setattr(request_spans, "time", SimpleNamespace(time_ns=lambda: next(clock)))
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = OtelTracer(provider).begin_rpc("S", "M", (), client="", request_id="r")
    assert trace is not None
    pending: asyncio.Future[BatchedRows] = asyncio.get_running_loop().create_future()
    trace.submitted(pending)
    logits = np.zeros((2, 3), np.float32)
    trace.end(grpc.StatusCode.OK, "m", BatchedRows(logits, 1.0, 1.5, 8, logits, 0))
    queue, compute, server = exporter.get_finished_spans()
    assert (queue.name, compute.name, server.name) == ("queue", "compute", "S/M")
    assert [(span.end_time or 0) - (span.start_time or 0) for span in (queue, compute)] == [1_000_000, 1_500_000]
    assert compute.start_time == queue.end_time
    assert (compute.attributes or {})["fuseline.batch.rows"] == 8
    assert compute.links == ()


async def test_an_unsampled_caller_s_request_makes_no_span_and_a_sampled_one_s_batch_is_sampled_too(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = traced_by(monkeypatch, ParentBased(root=ALWAYS_OFF))
    served = await start_server()
    await served.stub.Classify(raw_request(noise(1)))
    await served.stub.Classify(raw_request(noise(1)), metadata=(("traceparent", UNSAMPLED),))
    assert traces.all() == []
    await served.stub.Classify(raw_request(noise(1)), metadata=(("traceparent", PARENT),))
    assert sorted(span.name for span in traces.all()) == ["batch", "compute", CLASSIFY, "queue"]


async def test_a_request_over_http_has_a_span_by_http_s_conventions(start_server: StartServer, traces: Traces) -> None:
    served = await start_server(http_port=free_port())

    def post(path: str, body: bytes) -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", served.server.http_port or 0, timeout=10)
        try:
            connection.request("POST", path, body, {"traceparent": PARENT, "content-type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["x-request-id"]
        finally:
            connection.close()

    status, request_id = await asyncio.to_thread(post, "/v1/models/colours/classify", encoded(plain("blue")))
    assert status == 200
    server = traces.one("POST /v1/models/{model}/classify")
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.attributes is not None
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}/classify",
        "url.path": "/v1/models/colours/classify",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "fuseline.model": "colours",
        "fuseline.request_id": request_id,
    }
    assert {name: server.attributes[name] for name in expected} == expected
    assert {*traces.children(server)} >= {"decode", "queue", "compute"}
    status, _ = await asyncio.to_thread(post, "/v2/models/colours/infer", b"{")
    assert status == 400
    refused = traces.one("POST /v2/models/{model}/infer")
    assert (refused.attributes or {})["http.response.status_code"] == 400


async def test_nothing_of_a_request_is_left_behind_when_its_caller_goes(
    start_server: StartServer, traces: Traces
) -> None:
    served = await start_server()
    held = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    waiting = served.stub.Classify(raw_request(noise(1)))
    await served.until(lambda: served.queued_rows == 1)
    waiting.cancel()
    await served.until(lambda: len(traces.named(CLASSIFY)) == 1)
    cancelled = traces.one(CLASSIFY)
    assert (cancelled.attributes or {})["rpc.response.status_code"] == "CANCELLED"
    assert traces.children(cancelled) == ["queue"]
    served.backend.release()
    await held
    tracer = served.server._metrics.tracer
    assert isinstance(tracer, OtelTracer)
    assert tracer._under_way == {}
