"""`python -m fuseline.benchmarks.who_goes_first PACKAGE`: small requests beside bulk callers, and a greedy client.

The server is a process of its own on this machine. Requests are raw pixels. Clients of the second part come from
addresses of their own, 127.0.0.2 and on, over HTTP, where a client can choose that.
"""

import http.client
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer

from fuseline.benchmarks.harness.machine import describe, machine_facts
from fuseline.benchmarks.harness.server_process import free_ports, started_server
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.command_line import run_command_line
from fuseline.serve.http.classify_routes import PROTOBUF_TYPE
from fuseline.serve.model_package import load_package

OTHERS, CALLS_OF_ONE, CALLS_OF_GREEDY = 9, 2, 20
"""Number of clients beside the greedy one, and of calls that one of them, and the greedy one, keeps under way."""

RETRY_SECONDS = 0.01
WARM_SECONDS = 1.0


def main(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Model package that is served.")],
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of each measurement.")] = 10.0,
    rows: Annotated[int, typer.Option(min=1, max=128, help="Images of a bulk request.")] = 128,
    bulk: Annotated[int, typer.Option(min=1, max=64, help="Bulk callers.")] = 2,
    queue_rows: Annotated[int, typer.Option(min=1, help="--max-queue-rows in the second part.")] = 32,
) -> None:
    """Measure what one image at a time takes beside bulk callers, and what each of ten clients gets."""
    shape = load_package(package).manifest.input.pixel_shape
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes()
    print(describe(machine_facts()))
    # Nobody is refused, however slow the machine.
    with started_server(package, "--max-queue-ms", "60000") as server:
        for small, bulk_callers in ((1, 0), (0, bulk), (1, bulk)):
            latencies, rows_per_s = _beside_bulk(server.address, pixels, small, bulk_callers, rows, seconds)
            p50, p99 = np.percentile(latencies, (50, 99)) if latencies else (0.0, 0.0)
            print(
                f"{small} with one image at a time: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, "
                f"{len(latencies) / seconds:.1f} images/s; {bulk_callers} with {rows}: {rows_per_s:.1f} images/s"
            )
    (port,) = free_ports(1)
    flags = ("--http-port", str(port), "--max-queue-rows", str(queue_rows), "--max-images-per-request", "1")
    with started_server(package, *flags):
        answered = _ten_clients(port, pixels, seconds)
    total = sum(answered)
    shares = " ".join(f"{10 * count / total:.2f}" for count in answered)
    print(f"{OTHERS} clients and one that sends ten times as much: {total / seconds:.1f} images/s; tenths: {shares}")


def _beside_bulk(
    address: str, pixels: bytes, small: int, bulk: int, rows: int, seconds: float
) -> tuple[list[float], float]:
    latencies: list[float] = []
    answered = [0]
    began = time.monotonic() + WARM_SECONDS

    def calls(count: int) -> None:
        with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
            stub = ClassifierStub(channel)
            request = ClassifyRequest(images=[Image(raw=pixels)] * count)
            while (sent := time.monotonic()) < began + seconds:
                stub.Classify(request)
                if sent < began:
                    continue
                if count > 1:
                    answered[0] += count
                else:
                    latencies.append(time.monotonic() - sent)

    _in_threads([*([lambda: calls(1)] * small), *([lambda: calls(rows)] * bulk)])
    return latencies, answered[0] / (time.monotonic() - began)


def _ten_clients(port: int, pixels: bytes, seconds: float) -> list[int]:
    """Return how many images each client got in `seconds`, the greedy one's as the last."""
    answered = [0] * (OTHERS + 1)
    lock = threading.Lock()
    body = ClassifyRequest(images=[Image(raw=pixels)]).SerializeToString()
    began = time.monotonic() + WARM_SECONDS

    def calls(client: int) -> None:
        source = (f"127.0.0.{client + 2}", 0)
        connection = http.client.HTTPConnection("127.0.0.1", port, source_address=source)
        while time.monotonic() < began + seconds:
            connection.request("POST", "/v1/classify", body, {"content-type": PROTOBUF_TYPE})
            with connection.getresponse() as response:
                response.read()
                status = response.status
            if status != HTTPStatus.OK:
                time.sleep(RETRY_SECONDS)
            elif began <= time.monotonic() < began + seconds:
                with lock:
                    answered[client] += 1
        connection.close()

    def caller(client: int) -> Callable[[], None]:
        return lambda: calls(client)

    counts = [*([CALLS_OF_ONE] * OTHERS), CALLS_OF_GREEDY]
    _in_threads([caller(client) for client, count in enumerate(counts) for _ in range(count)])
    return answered


def _in_threads(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_command_line(app)
