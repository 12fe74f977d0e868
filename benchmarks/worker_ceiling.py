"""`python -m fuseline.benchmarks.worker_ceiling`: images/s that the front end feeds to a fast GPU, against its workers.

The GPU is simulated (`fuseline.benchmarks.simulated_backend`); clients and server share this machine's cores, so
images/s here are a floor. What carries over to other machines is the CPU time of an image, by process: from it follows
what a machine with more cores would do, as far as nothing else gets in the way.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.harness.machine import describe, usable_cores
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.results import check_writable, conditions, write_result
from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.simulated_backend import CALL_MS, ROW_MS, images_per_s
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.serve.command_line import run_command_line

_CLASSES = 1000
_LARGEST_BATCH = 32
_PICTURES = 32
_CONCURRENCY = 128
_CLIENT_PROCESSES = 4
"""Each has one connection, which the kernel gives to any worker."""
_CORES = 16


@dataclass(frozen=True, slots=True)
class Case:
    """What a request holds."""

    side: int
    images: int

    def __str__(self) -> str:
        """`3 KB x 16`: kilobytes (1000 bytes) of an image, images."""
        size = f"{3 * self.side**2 / 1000:.0f} KB"
        return size if self.images == 1 else f"{size} x {self.images}"


CASES = (Case(32, 1), Case(32, 16), Case(224, 1))


@dataclass(frozen=True, slots=True)
class Point:
    """One server's figures, over all rounds. CPU in milliseconds an image."""

    case: str
    workers: int
    images_per_s: Spread
    front_cpu_ms: Spread
    """CPU time of the workers, or of the one process where there is one."""
    backend_cpu_ms: Spread | None
    client_cpu_ms: Spread
    errors: int


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """Images/s of a machine with `cores`, its clients elsewhere, and which of the three limits it."""

    case: str
    cores: int
    workers: int
    images_per_s: float
    limit: str


def measure(cases: tuple[Case, ...], worker_counts: list[int], *, rounds: int, seconds: float) -> list[Point]:
    """Measure every case with every number of workers, in turn, `rounds` times."""
    samples: dict[tuple[Case, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        packages = {
            side: write_tiny_package(Path(folder) / f"tiny{side}", side=side, classes=_CLASSES)
            for side in {case.side for case in cases}
        }
        for _ in range(rounds):
            for case in cases:
                for workers in worker_counts:
                    sample = _sample(packages[case.side], case, workers, seconds)
                    samples.setdefault((case, workers), []).append(sample)
    return [_point(case, workers, taken) for (case, workers), taken in samples.items()]


def extrapolate(point: Point, cores: int = _CORES) -> Extrapolation:
    """What `point`'s CPU costs come to on `cores`: one for the backend process, whose Python uses no more, the others
    for workers.
    """
    assert point.backend_cpu_ms is not None
    limits = {
        "workers": (cores - 1) * 1000 / point.front_cpu_ms.median,
        "backend process": 1000 / point.backend_cpu_ms.median,
        "device": images_per_s(_LARGEST_BATCH),
    }
    limit = min(limits, key=limits.__getitem__)
    return Extrapolation(point.case, cores, cores - 1, limits[limit], limit)


def _sample(package: Path, case: Case, workers: int, seconds: float) -> dict[str, float]:
    flags = ("--backend", "onnxruntime", "--threads", "1", "--max-batch", str(_LARGEST_BATCH))
    pictures = [Image(raw=pixels.tobytes()) for pixels in generated_pictures((case.side, case.side, 3), _PICTURES)]
    requests = tuple(
        ClassifyRequest(images=[pictures[(start + n) % _PICTURES] for n in range(case.images)]).SerializeToString()
        for start in range(8)
    )
    concurrency = max(2 * _CLIENT_PROCESSES, _CONCURRENCY // case.images)
    with started_server(
        package, *flags, "--workers", str(workers), module="fuseline.benchmarks.simulated_server"
    ) as server:
        edges: list[tuple[float, float]] = []
        load = ClosedLoad(
            address=server.address,
            requests=requests,
            burn_in_requests=requests,
            concurrency=concurrency,
            seconds=seconds,
            processes=_CLIENT_PROCESSES,
        )
        result = run_closed_loop(load, at_edge=lambda: edges.append(_cpu_by_role(server)))
    images = result.requests_per_s * seconds * case.images
    (front_before, backend_before), (front_after, backend_after) = edges
    return {
        "images_per_s": result.requests_per_s * case.images,
        "front_cpu_ms": 1000 * (front_after - front_before) / images,
        "backend_cpu_ms": 1000 * (backend_after - backend_before) / images,
        # Of the busiest, times their number: an upper bound.
        "client_cpu_ms": 1000 * _CLIENT_PROCESSES * result.generator_cpu_share * seconds / images,
        "errors": sum(result.errors.values()),
    }


def _cpu_by_role(server: ServerProcess) -> tuple[float, float]:
    """CPU seconds of the front end, the supervisor's included, and of the backend process."""
    total = cpu_seconds(server.pid) or 0.0
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()
    backend = sum(
        cpu_seconds(int(child)) or 0.0
        for child in children
        if "simulated_backend" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8", errors="replace")
    )
    return total - backend, backend


def _point(case: Case, workers: int, taken: list[dict[str, float]]) -> Point:
    def spread(name: str) -> Spread:
        return spread_of([sample[name] for sample in taken])

    return Point(
        case=str(case),
        workers=workers,
        images_per_s=spread("images_per_s"),
        front_cpu_ms=spread("front_cpu_ms"),
        backend_cpu_ms=spread("backend_cpu_ms") if workers > 1 else None,
        client_cpu_ms=spread("client_cpu_ms"),
        errors=int(sum(sample["errors"] for sample in taken)),
    )


def _table(points: list[Point], extrapolations: list[Extrapolation]) -> Table:
    table = Table(
        title=f"A simulated device ({CALL_MS:g} ms + {ROW_MS:g} ms a row), {_CONCURRENCY} images under way, clients on "
        f"the same {usable_cores()} cores"
    )
    for heading in ("image", "workers", "images/s", "front end, CPU ms", "backend, CPU ms", "clients, CPU ms"):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            point.case,
            str(point.workers) if point.workers > 1 else "1 (one process)",
            f"{point.images_per_s:.0f}",
            f"{point.front_cpu_ms:.3f}",
            "" if point.backend_cpu_ms is None else f"{point.backend_cpu_ms:.3f}",
            f"{point.client_cpu_ms:.3f}",
        )
    table.caption = "CPU for each image. " + "\n".join(
        f"{each.case}: on {each.cores} cores, {each.workers} workers, its clients elsewhere, about "
        f"{each.images_per_s:,.0f} images/s, limited by the {each.limit}"
        for each in extrapolations
    )
    table.caption_justify = "left"
    return table


def worker_ceiling(
    *,
    workers: Annotated[
        list[int] | None, typer.Option(help="How many; may be given several times. Default: 1 to the usable cores.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each server is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 3.0,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file too.")] = None,
) -> None:
    """Measure the front end on a simulated GPU, against the number of its workers."""
    if json is not None:
        check_writable(json)
    counts = sorted(set(workers or range(1, max(2, usable_cores()) + 1)))
    words = "".join(f" --workers {count}" for count in workers or [])
    taken = conditions(f"python -m fuseline.benchmarks.worker_ceiling{words} --rounds {rounds} --seconds {seconds:g}")
    points = measure(CASES, counts, rounds=rounds, seconds=seconds)
    most = {point.case: point for point in points if point.backend_cpu_ms is not None}
    extrapolations = [extrapolate(point) for point in most.values()]
    console = Console()
    console.print(_table(points, extrapolations))
    console.print(describe(taken.facts["machine"]), style="dim", highlight=False)
    if json is not None:
        figures: dict[str, Any] = {
            "device": {"call_ms": CALL_MS, "row_ms": ROW_MS, "largest_batch": _LARGEST_BATCH},
            "concurrent_images": _CONCURRENCY,
            "client_processes": _CLIENT_PROCESSES,
            "points": [asdict(point) for point in points],
            "extrapolations": [asdict(each) for each in extrapolations],
        }
        write_result(json, "worker_ceiling", taken, figures)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(worker_ceiling)
    run_command_line(app)
