"""`python -m fuseline.benchmarks.watched`: what a server's CPU time a request costs more while somebody watches it.

Two servers of a model that costs next to nothing are loaded in turns, by unary calls of 3 KB as in `bench peers --case
unary`: one that nobody watches, and one that is watched, as an open page does, or isn't. What is compared is the CPU
time of the server's process for each request, within one round.
"""

import http.client
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.harness.machine import describe, machine_facts
from fuseline.benchmarks.harness.server_process import ServerProcess, free_ports, started_server
from fuseline.benchmarks.harness.stats import pair_ratios, spread_of
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.serve.command_line import run_command_line

_SIDE, _CLASSES = 32, 10
_FACTS_EVERY_S = 5.0
_READ_BYTES = 65_536
_TIMEOUT_S = 10.0

WAYS = {
    "no page": ("--no-console", False),
    "a page, not open": ("--console", False),
    "a page that is open": ("--console", True),
}
"""Flag of the server, and whether somebody watches it."""


def main(
    rounds: Annotated[int, typer.Option(min=2, max=1000, help="Rounds, in each of which each way is measured.")] = 40,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Length of each measurement.")] = 1.5,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests under way.")] = 16,
    flags: Annotated[str, typer.Option(help="Further flags of the servers, such as '--workers 2'.")] = "",
) -> None:
    """Measure the CPU time of a server for each request, watched and not."""
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8).tobytes()
    request = ClassifyRequest(images=[Image(raw=pixels)]).SerializeToString()
    print(describe(machine_facts()))
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        package = write_tiny_package(Path(folder) / "tiny", side=_SIDE, classes=_CLASSES)
        ports = free_ports(2)
        with (
            started_server(package, "--no-console", "--http-port", str(ports[0]), *flags.split()) as plain,
            started_server(package, "--console", "--http-port", str(ports[1]), *flags.split()) as paged,
        ):
            servers = {"--no-console": plain, "--console": paged}
            for number in range(rounds):
                names = list(WAYS)
                # No way always comes first.
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    flag, is_watched = WAYS[name]
                    server = servers[flag]
                    with watching(server, is_watched=is_watched):
                        found[name].append(cpu_us(server, request, seconds, concurrency))
    for name, values in found.items():
        print(f"{name}: {spread_of(values):.1f} us of CPU a request")
    for name, base in (("a page, not open", "no page"), ("a page that is open", "a page, not open")):
        print(f"{name}, by {base}: {spread_of(pair_ratios(found[name], found[base])):.3f}")


def cpu_us(server: ServerProcess, request: bytes, seconds: float, concurrency: int) -> float:
    """Return the microseconds of CPU time that `server` takes for each request."""
    edges: list[float] = []

    def note() -> None:
        used = cpu_seconds(server.pid)
        assert used is not None
        edges.append(used)

    load = ClosedLoad(
        address=server.address,
        requests=(request,),
        burn_in_requests=(request,),
        burn_in_s=0.5,
        seconds=seconds,
        concurrency=concurrency,
    )
    result = run_closed_loop(load, note)
    if result.errors:
        raise RuntimeError(f"requests failed: {result.errors}")
    return 1e6 * (edges[1] - edges[0]) / (result.requests_per_s * seconds)


@contextmanager
def watching(server: ServerProcess, *, is_watched: bool) -> Iterator[None]:
    """Ask and read what an open page does, in a thread."""
    if not is_watched:
        yield
        return
    ended = threading.Event()
    threads = [threading.Thread(target=work, args=(server, ended)) for work in (_read_events, _read_facts)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _read_events(server: ServerProcess, ended: threading.Event) -> None:
    with _connection(server) as connection:
        connection.request("GET", "/console/events")
        response = connection.getresponse()
        assert response.status == 200
        while not ended.is_set():
            assert response.read1(_READ_BYTES)


def _read_facts(server: ServerProcess, ended: threading.Event) -> None:
    with _connection(server) as connection:
        while not ended.wait(_FACTS_EVERY_S):
            connection.request("GET", "/console/server")
            assert connection.getresponse().read()


@contextmanager
def _connection(server: ServerProcess) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.http_address, timeout=_TIMEOUT_S)
    try:
        yield connection
    finally:
        connection.close()


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_command_line(app)
