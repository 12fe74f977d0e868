"""Servers as processes, which send their traces to a collector of OTLP."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client import Client
from fuseline.serve.tracing.tracing import open_tracer, wanted_exporters
from tests.fakes.colours import encoded, noise, plain
from tests.serve.processes import FAST, server_process
from tests.serve.services.classify_requests import raw_request
from tests.serve.tracing.collector import Collected, attributes, grpc_collector, http_collector

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1bf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
CLASSIFY = "fuseline.v1.Classifier/Classify"
_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""Nothing is exported before the drain."""


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables


def classified(package: Path, *flags: object, env: dict[str, str]) -> str:
    """Classify two pictures by a server of that environment, drain it, and return its log."""
    with server_process(package, *FAST, *flags, env=env) as server:
        with Client(server.address) as client:
            client.classify([encoded(plain("green"))])
            client.classify([plain("blue")])
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr
    return stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", pytest.param("grpc", marks=pytest.mark.slow)])
def test_the_drain_exports_every_span_to_the_collector_that_the_environment_names(package: Path, protocol: str) -> None:
    with (http_collector if protocol == "http/protobuf" else grpc_collector)() as collected:
        log = classified(
            package,
            env=environment(
                OTEL_EXPORTER_OTLP_ENDPOINT=collected.address,
                OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
                OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
                **_SOON,
            ),
        )
    assert "requests are traced, by otlp" in log
    names = sorted(span.name for span in collected.spans)
    assert names == sorted([*["batch", "compute", "queue", CLASSIFY] * 2, "decode"])
    (resource,) = collected.resources
    assert resource["service.name"] == "fuseline"
    assert resource["deployment.environment.name"] == "test"
    batches = {span.span_id for span in collected.named("batch")}
    assert {link.span_id for span in collected.named("compute") for link in span.links} == batches
    assert not sent_pixels(collected)


def sent_pixels(collected: Collected) -> bool:
    """Whether the collector was sent anything of a picture."""
    sent = b"".join(request.SerializeToString() for request in collected.requests)
    return encoded(plain("green"))[:64] in sent or plain("blue").tobytes()[:64] in sent


@pytest.mark.slow
def test_the_service_has_the_name_that_the_environment_gives_it(package: Path) -> None:
    with http_collector() as collected:
        classified(
            package,
            env=environment(
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collected.address}/v1/traces",
                OTEL_SERVICE_NAME="birds",
            ),
        )
    assert {resource["service.name"] for resource in collected.resources} == {"birds"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_SAMPLER": "always_off"}]
)
def test_tracing_can_be_turned_off_as_the_specification_says(package: Path, off: dict[str, str]) -> None:
    with http_collector() as collected:
        classified(package, env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=collected.address, **off))
    assert collected.spans == []


@pytest.mark.slow
def test_a_collector_that_is_not_there_costs_the_drain_some_seconds_at_most(package: Path) -> None:
    log = classified(package, env=environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **_SOON))
    assert "drained; answers since the start: 2 OK" in log


def test_with_workers_batches_link_to_their_requests_and_these_to_their_batches_as_in_one_process(
    package: Path,
) -> None:
    with http_collector() as collected:
        env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collected.address, **_SOON)
        with server_process(package, *FAST, "--max-batch", 4, "--workers", 2, env=env) as server:
            with Client(server.address) as client:
                client.classify([encoded(plain("green"))])
                client.classify([plain("blue")] * 10)
            server.process.send_signal(signal.SIGTERM)
            code, log = server.end()
        assert code == 0, log
    names = Counter(span.name for span in collected.spans)
    assert names == {CLASSIFY: 2, "decode": 1, "queue": 2, "batch": 4, "compute": 4}
    batches = {span.span_id: span for span in collected.named("batch")}
    assert {its["fuseline.process"] for its in collected.resources} > {"backend"}
    for request in collected.named(CLASSIFY):
        steps = [span for span in collected.spans if span.parent_span_id == request.span_id]
        assert {span.trace_id for span in steps} == {request.trace_id}
        own = [batch for batch in batches.values() if [link.span_id for link in batch.links] == [request.span_id]]
        assert {batch.parent_span_id for batch in own} == {request.span_id}
        computes = [span for span in steps if span.name == "compute"]
        assert len(computes) == len(own) == (3 if attributes(request.attributes)["fuseline.rows"] == 10 else 1)
        for compute in computes:
            (link,) = compute.links
            batch = batches[link.span_id]
            assert batch in own
            assert link.trace_id == batch.trace_id
            assert (compute.start_time_unix_nano, compute.end_time_unix_nano) == (
                batch.start_time_unix_nano,
                batch.end_time_unix_nano,
            )
            rows = "fuseline.batch.rows"
            assert attributes(compute.attributes)[rows] == attributes(batch.attributes)[rows]


def test_with_workers_what_the_caller_did_not_sample_has_no_span_in_any_process(package: Path) -> None:
    with http_collector() as collected:
        env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collected.address, **_SOON)
        with server_process(package, *FAST, "--workers", 2, env=env) as server:
            with grpc.insecure_channel(server.address) as channel:
                classifier = ClassifierStub(channel)
                for metadata in ((("traceparent", UNSAMPLED),), (("traceparent", SAMPLED),)):
                    classifier.Classify(raw_request(noise(1)), metadata=metadata, timeout=30)
            server.process.send_signal(signal.SIGTERM)
            code, log = server.end()
        assert code == 0, log
    assert sorted(span.name for span in collected.spans) == ["batch", "compute", CLASSIFY, "queue"]
    assert {span.trace_id.hex() for span in collected.spans} == {SAMPLED.split("-")[1]}


def test_without_the_extra_the_log_says_what_is_missing_and_the_server_serves(package: Path) -> None:
    # A module that is None can't be imported, nor found.
    hide = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "sys.argv[0] = 'fuseline'\n"
        "import fuseline.command\n"
        "fuseline.command.main()\n"
    )
    env = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    with server_process("serve", package, *FAST, command=("-c", hide), env=env) as server:
        with Client(server.address) as client:
            client.classify([plain("blue")])
        server.process.send_signal(signal.SIGTERM)
        code, log = server.end()
    assert code == 0, log
    assert log.count("pip install 'fuseline[otel]'") == 1


def test_of_several_processes_without_the_extra_one_says_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    asked = {"OTEL_TRACES_EXPORTER": "otlp"}
    assert [open_tracer(title, asked) for title in ("backend", "worker 1", "worker 2")] == [None] * 3
    assert sum("fuseline[otel]" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("variables", "exporters"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "x"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ()),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": " TRUE"}, ()),
    ],
)
def test_the_environment_says_whether_and_where_traces_go(
    variables: dict[str, str], exporters: tuple[str, ...]
) -> None:
    assert tuple(wanted_exporters(variables)) == exporters
    if not exporters:
        assert open_tracer(environment=variables) is None


def test_an_exporter_that_is_not_installed_is_named_and_nothing_is_traced(caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracer(environment={"OTEL_TRACES_EXPORTER": "pigeon"}) is None
    (line,) = (record.getMessage() for record in caplog.records if "pigeon" in record.getMessage())
    assert "is not installed" in line
