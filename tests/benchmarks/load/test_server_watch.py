from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from fuseline.benchmarks.load.server_watch import (
    Counts,
    ServerWatch,
    batches_between,
    counts_from_prometheus,
    with_metrics,
)
from fuseline.benchmarks.load.target import connect, connect_open_inference
from fuseline.benchmarks.serving.measure import measure_serving
from fuseline.serve.batching.batcher import BatchStats
from fuseline.serve.errors import InputError
from fuseline.serve.metrics.metrics import Metrics
from tests.serve.processes import ServerProcess, free_port, server_process


@pytest.fixture(scope="module")
def metered(colours: Path) -> Iterator[ServerProcess]:
    """A server with metrics."""
    flags = ("--port", 0, "--http-port", free_port(), "--backend", "onnxruntime", "--threads", 1)
    with server_process(colours, *flags) as server:
        yield server


def stats(rows: int, bucket: int) -> BatchStats:
    return BatchStats(rows=rows, bucket=bucket, queue_ms=1.0, compute_ms=1.0, failed=False)


def test_batches_are_read_from_the_metrics_of_the_server() -> None:
    metrics = Metrics()
    metrics.count_batch("net", stats(1, 1))
    before = counts_from_prometheus(generate_latest(metrics.registry).decode(), "net")
    for rows in (1, 2, 3, 4, 20):
        metrics.count_batch("net", stats(rows, 32 if rows == 20 else rows))
    metrics.count_batch("other", stats(8, 8))
    found = batches_between(before, counts_from_prometheus(generate_latest(metrics.registry).decode(), "net"))
    assert found.by_rows == ((1, 1, 1), (2, 2, 1), (3, 4, 2), (17, 32, 1))
    assert (found.batches, found.rows, found.padding_rows, found.mean_rows) == (5, 30, 12, 6.0)


def test_a_model_without_batches_has_none() -> None:
    assert counts_from_prometheus(generate_latest(Metrics().registry).decode(), "net") == Counts({}, 0, 0, 0)


def test_the_batches_of_the_window_are_counted(metered: ServerProcess) -> None:
    target = with_metrics(connect(metered.address, metered.process.pid), str(metered.http_address))
    figures = measure_serving(target, concurrency=4, seconds=0.5, burn_in_s=0.05, images_per_request=2)
    assert figures.batches is not None
    assert figures.batches.rows == pytest.approx(figures.requests * 2, rel=0.5)
    assert 2 <= figures.batches.mean_rows <= 8
    assert figures.server_cpu_ms_per_request is not None


def test_the_open_inference_protocol_tells_batches_by_itself(metered: ServerProcess) -> None:
    target = connect_open_inference(metered.address)
    watch = ServerWatch(target)
    watch()
    measure_serving(target, concurrency=1, seconds=0.2, burn_in_s=0.05)
    watch()
    batches = watch.batches()
    assert batches is not None
    assert batches.batches == batches.rows > 0
    assert [span[:2] for span in batches.by_rows] == [(1, 1)]


def test_without_metrics_there_are_no_batches(metered: ServerProcess) -> None:
    assert measure_serving(connect(metered.address), concurrency=1, seconds=0.1, burn_in_s=0.01).batches is None


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no address", "127.0.0.1:port"])
def test_no_metrics_at_the_address(metered: ServerProcess, address: str) -> None:
    with pytest.raises(InputError, match="--metrics-address"):
        with_metrics(connect(metered.address), address)


def test_metrics_of_another_model(metered: ServerProcess) -> None:
    target = connect(metered.address)
    target.model.name = "another"
    with pytest.raises(InputError, match="counts no batches of another"):
        with_metrics(target, str(metered.http_address))
