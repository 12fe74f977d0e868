"""`python -m fuseline.deploy.ray.proxy_cost`: what Ray's proxies cost, beside `fuseline serve` alone.

The same package is served both ways on this machine, with one process that computes each, and is asked the same in
turn, by gRPC and by HTTP: one request after another, for the latency, then many at a time, for requests/s. The model
costs next to nothing, so that what is measured is the way to it. CPU time is that of all processes of a server.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fuseline.benchmarks.harness.cpu_time import family_stats, with_cores_used_by
from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.harness.results import RESULTS, check_writable, conditions, write_result
from fuseline.benchmarks.harness.server_process import free_ports, started_server
from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.load.calls import open_calls
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.load.http_calls import open_http_calls
from fuseline.benchmarks.load.protocols import Classify, WireProtocol
from fuseline.benchmarks.load.rest import RestInference
from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.ray_version import check_ray
from fuseline.deploy.ray.servicers import SERVICER_FUNCTIONS
from fuseline.serve.command_line import run_command_line
from fuseline.serve.model_package import load_package
from fuseline.serve.reference import read_reference

ALONE, BEHIND_RAY = "fuseline serve", "Ray Serve"

_CLASSES = 1000
_MAX_BATCH = 32
_BURN_IN_S = 1.0
_IDLE_S = 3.0
_STORE_BYTES = 100 * 2**20
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that is ready."""

    name: str
    grpc_address: str
    http_address: str
    pid: int
    """Process of which all others of the server descend."""


@dataclass(frozen=True, slots=True)
class Door:
    """How it is asked."""

    name: str
    wire: Any
    """Its `WireProtocol`."""

    def address(self, contender: Contender) -> str:
        """Where `contender` is asked so."""
        return contender.http_address if self.name == "HTTP" else contender.grpc_address


@dataclass(frozen=True, slots=True)
class Point:
    """One contender's figures at one door, over all rounds. Times in milliseconds."""

    contender: str
    door: str
    concurrency: int
    p50_ms: Spread
    p99_ms: Spread
    requests_per_s: Spread
    cpu_ms: Spread
    """CPU time of a request, of all processes of the server."""
    cpu_ms_by_process: dict[str, float]
    """The same by kind of process; medians."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Ray's figures over those of `fuseline serve`, each of its own round."""

    door: str
    concurrency: int
    p50: Spread
    requests_per_s: Spread
    cpu: Spread


Sample = dict[str, Any]


def measure(*, side: int, rounds: int, seconds: float, concurrency: int) -> dict[str, Any]:
    """Measure both contenders in turn, `rounds` times, and return the figures."""
    samples: dict[tuple[str, str, int], list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        package = write_tiny_package(Path(folder) / "tiny", side=side, classes=_CLASSES)
        doors = _doors(package)
        pixels, logits = read_reference(load_package(package))
        with _alone(package) as alone, _behind_ray(package) as behind_ray:
            contenders = (alone, behind_ray)
            idle = {its.name: with_cores_used_by([its.pid], partial(time.sleep, _IDLE_S))[1] for its in contenders}
            for number in range(rounds):
                for door in doors:
                    for callers in (1, concurrency):
                        # Each goes first as often as the other.
                        for contender in contenders if number % 2 == 0 else reversed(contenders):
                            sample = _sample(contender, door, pixels, logits, callers, seconds)
                            samples.setdefault((contender.name, door.name, callers), []).append(sample)
    return {
        "picture_bytes": int(pixels[0].nbytes),
        "idle_cores": {name: round(cores, 3) for name, cores in idle.items()},
        "points": [asdict(_point(*key, taken)) for key, taken in samples.items()],
        "ray_over_alone": [
            asdict(_cost(door.name, callers, samples)) for door in doors for callers in (1, concurrency)
        ],
    }


def _doors(package: Path) -> tuple[Door, Door]:
    manifest = load_package(package).manifest
    spec = manifest.input
    rest = RestInference(
        manifest.name, spec.name, (spec.height, spec.width, spec.channels), manifest.output_name, manifest.classes
    )
    return Door("gRPC", Classify()), Door("HTTP", rest)


@contextmanager
def _alone(package: Path) -> Iterator[Contender]:
    (http_port,) = free_ports(1)
    flags = ("--backend", "onnxruntime", "--threads", "1", "--decode-threads", "1", "--max-batch", str(_MAX_BATCH))
    with started_server(package, *flags, "--http-port", str(http_port), "--no-console") as server:
        yield Contender(ALONE, server.address, server.http_address, server.pid)


@contextmanager
def _behind_ray(package: Path) -> Iterator[Contender]:
    """Serve on a Ray node of this machine, which `ray start` has started as a process of its own."""
    check_ray()
    os.environ.update(_ENVIRONMENT)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from fuseline.deploy.ray.application import app

    grpc_port, http_port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="flray") as folder:
        options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": _STORE_BYTES, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        try:
            ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": "127.0.0.1", "port": http_port},
                grpc_options={"port": grpc_port, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)},
            )
            args = {"package": package, "backend": "onnxruntime", "max_batch": _MAX_BATCH, "num_cpus": 1}
            serve.run(app(AppArgs.model_validate(args)), name="tiny", route_prefix="/")
            yield Contender(BEHIND_RAY, f"127.0.0.1:{grpc_port}", f"127.0.0.1:{http_port}", _raylet(cluster))
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()


def _raylet(cluster: Any) -> int:
    """Return the process from which the proxy, the controller and the replica descend."""
    return int(cluster.head_node.all_processes["raylet"][0].process.pid)


def _sample(
    contender: Contender,
    door: Door,
    pixels: NDArray[np.uint8],
    logits: NDArray[np.float32],
    callers: int,
    seconds: float,
) -> Sample:
    wire: WireProtocol = door.wire
    burn_in = tuple(wire.request(pixels[row : row + 1], with_logits=True) for row in range(len(pixels)))
    requests = tuple(wire.request(pixels[row : row + 1], with_logits=False) for row in range(len(pixels)))
    edges: list[Mapping[str, float]] = []
    load = ClosedLoad(
        address=door.address(contender),
        requests=requests,
        burn_in_requests=burn_in,
        concurrency=callers,
        seconds=seconds,
        burn_in_s=_BURN_IN_S,
        method=wire.method,
        transport=partial(open_http_calls, fields=door.wire.fields) if door.name == "HTTP" else open_calls,
    )
    result = run_closed_loop(load, at_edge=lambda: edges.append(_cpu_by_kind(contender.pid)))
    for row, answer in result.answers:
        wire.check(f"{contender.name}, {door.name}", "fp32", answer, logits[row : row + 1])
    before, after = edges
    count = result.requests_per_s * seconds
    by_kind = {kind: 1000 * (after[kind] - before.get(kind, 0.0)) / count for kind in after}
    return {
        "p50_ms": 1000 * float(np.quantile(result.latency_s, 0.5)),
        "p99_ms": 1000 * float(np.quantile(result.latency_s, 0.99)),
        "requests_per_s": result.requests_per_s,
        "cpu_ms": sum(by_kind.values()),
        "by_kind": by_kind,
        "errors": sum(result.errors.values()),
    }


def _cpu_by_kind(pid: int) -> dict[str, float]:
    """Return the CPU seconds of `pid` and what descends of it, by kind of process."""
    seconds: dict[str, float] = {}
    for its, fields in family_stats(pid).items():
        try:
            words = Path(f"/proc/{its}/cmdline").read_bytes()
        except OSError:
            continue
        kinds = {b"ray::ServeReplica": "replica", b"ray::ProxyActor": "proxy", b"ray::ServeController": "controller"}
        kind = next((name for begin, name in kinds.items() if words.startswith(begin)), "other")
        seconds[kind] = seconds.get(kind, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _point(contender: str, door: str, concurrency: int, taken: list[Sample]) -> Point:
    def spread(name: str) -> Spread:
        return spread_of([sample[name] for sample in taken])

    kinds = {kind for sample in taken for kind in sample["by_kind"]}
    by_kind = {
        kind: round(spread_of([sample["by_kind"].get(kind, 0.0) for sample in taken]).median, 4)
        for kind in sorted(kinds)
    }
    return Point(
        contender,
        door,
        concurrency,
        spread("p50_ms"),
        spread("p99_ms"),
        spread("requests_per_s"),
        spread("cpu_ms"),
        by_kind,
    )


def _cost(door: str, concurrency: int, samples: Mapping[tuple[str, str, int], list[Sample]]) -> Cost:
    ray, alone = (samples[name, door, concurrency] for name in (BEHIND_RAY, ALONE))

    def ratio(name: str) -> Spread:
        return spread_of(pair_ratios([sample[name] for sample in ray], [sample[name] for sample in alone]))

    return Cost(door, concurrency, ratio("p50_ms"), ratio("requests_per_s"), ratio("cpu_ms"))


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table(title=f"One picture of {figures['picture_bytes']:,} bytes a request, a model that costs nothing")
    for heading in ("door", "at a time", "server", "p50 ms", "p99 ms", "requests/s", "CPU ms a request", "of which"):
        table.add_column(heading, justify="right")
    for point in figures["points"]:
        spreads = (Spread(**point[name]) for name in ("p50_ms", "p99_ms", "requests_per_s", "cpu_ms"))
        parts = ", ".join(f"{kind} {ms:.2f}" for kind, ms in point["cpu_ms_by_process"].items() if kind != "other")
        table.add_row(
            point["door"], str(point["concurrency"]), point["contender"], *(f"{its}" for its in spreads), parts
        )
    table.caption = "\n".join(
        f"{cost['door']}, {cost['concurrency']} at a time: Ray takes {Spread(**cost['p50']):.2f} times the latency and "
        f"{Spread(**cost['cpu']):.2f} times the CPU, and answers {Spread(**cost['requests_per_s']):.2f} times as many"
        for cost in figures["ray_over_alone"]
    )
    table.caption_justify = "left"
    return table


def proxy_cost(
    *,
    side: Annotated[int, typer.Option(min=8, help="Of the pictures, in pixels; a multiple of 8.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each server is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 4.0,
    concurrency: Annotated[int, typer.Option(min=2, help="Requests under way, where there are many.")] = 32,
    json: Annotated[Path, typer.Option(help="File for the figures.")] = RESULTS / "ray-proxy.json",
) -> None:
    """Measure Ray's proxies beside `fuseline serve` alone, by gRPC and HTTP; under 4 minutes by default."""
    check_writable(json)
    words = f"--side {side} --rounds {rounds} --seconds {seconds:g} --concurrency {concurrency}"
    taken = conditions(f"python -m fuseline.deploy.ray.proxy_cost {words}")
    figures = measure(side=side, rounds=rounds, seconds=seconds, concurrency=concurrency)
    console = Console()
    console.print(_table(figures))
    console.print(describe(taken.facts["machine"]), style="dim", highlight=False)
    switches = {name: value for name, value in sorted(os.environ.items()) if name.startswith("RAY_SERVE_")}
    write_result(json, "ray-proxy", taken, {"ray": version("ray"), "ray_environment": switches, **figures})


if __name__ == "__main__":
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(proxy_cost)
    run_command_line(command)
