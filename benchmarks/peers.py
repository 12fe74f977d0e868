"""`fuseline bench peers`: what the front end costs beside a bare grpc.aio echo, in one interleaved run.

Both servers get the same bytes from the same load generator, in turn. Fuseline's model costs next to nothing (see
`benchmarks.tiny_package`), and what the bare backend takes for it is measured too. One case has a real network
instead, whose bar is what serving leaves of the bare backend's images/s. A ratio is of two neighbours in time. The
exit code is 1 if a bar is missed.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.answers import check_response
from benchmarks.calls import CLASSIFY, CLASSIFY_STREAM
from benchmarks.cpu_time import cpu_seconds
from benchmarks.echo_server import ECHO, ECHO_STREAM
from benchmarks.engine_process import EngineProcess
from benchmarks.load import Load, run_closed_loop
from benchmarks.machine import describe
from benchmarks.pictures import generated_pictures
from benchmarks.results import check_writable, conditions, write_result
from benchmarks.server_process import started_server
from benchmarks.stats import pair_ratios, spread_of
from benchmarks.subject import Subject, open_subject
from benchmarks.tiny_package import write_tiny_package
from protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from serve.errors import BackendError

CONCURRENCY = 32
_PICTURES = 8
_BACKEND = "onnxruntime"
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load, and its bar."""

    title: str
    side: int
    """Of the picture, in pixels."""
    classes: int
    bar: float
    bar_is: str
    """`times echo`: server CPU of a request as a multiple of the echo's; `ms an image`: server CPU of an image;
    `ms over bare`: median latency above the bare backend call; `of bare`: images/s as a share of the bare backend's,
    which the bar is the least of, where else it is the most."""
    images: int = 1
    """Of each request."""
    stream: bool = False
    concurrency: int = CONCURRENCY
    network: str = ""
    """With random weights, on all cores; empty: the tiny model, on one."""

    @property
    def model(self) -> tuple[str, int]:
        """Cases of the same model share a server."""
        return self.network, self.side


CASES = {
    "unary": Case("Classify, 3 KB", 32, 10, 1.5, "times echo"),
    "unary-224": Case("Classify, 150 KB", 224, 1000, 1.5, "times echo"),
    "stream": Case("ClassifyStream, 3 KB", 32, 10, 1.5, "times echo", stream=True),
    "images": Case("Classify, 16 x 3 KB", 32, 10, 0.05, "ms an image", images=16),
    "alone": Case("Classify, 3 KB, one at a time", 32, 10, 1.5, "ms over bare", concurrency=1),
    "resnet18": Case("Classify, ResNet-18 at 224", 224, 1000, 0.97, "of bare", network="resnet18"),
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one server did under one load for a while."""

    requests_per_s: float
    server_cpu_ms_per_request: float
    p50_ms: float


@dataclass(slots=True)
class CaseRounds:
    """One case; lists have a value for each round."""

    name: str
    fuseline: list[Stretch] = field(default_factory=list)
    echo: list[Stretch] = field(default_factory=list)
    bare_backend_ms: list[float] = field(default_factory=list)
    """Median call of the bare backend: one image where requests come alone, else 32, or what a batch takes at most."""
    bare_backend_rows: int = 1

    @property
    def case(self) -> Case:
        """What was measured."""
        return CASES[self.name]

    def measures(self) -> tuple[float, ...]:
        """What the bar is about, a value for each round."""
        case, cpu = self.case, [each.server_cpu_ms_per_request for each in self.fuseline]
        if case.bar_is == "times echo":
            return pair_ratios(cpu, [each.server_cpu_ms_per_request for each in self.echo])
        if case.bar_is == "ms an image":
            return tuple(each / case.images for each in cpu)
        if case.bar_is == "of bare":
            bare_images_per_s = [1e3 * self.bare_backend_rows / ms for ms in self.bare_backend_ms]
            return pair_ratios([case.images * each.requests_per_s for each in self.fuseline], bare_images_per_s)
        latency = [each.p50_ms for each in self.fuseline]
        return tuple(served - bare for served, bare in zip(latency, self.bare_backend_ms, strict=True))

    @property
    def passed(self) -> bool:
        """Whether the median is within the bar."""
        median = spread_of(self.measures()).median
        return median >= self.case.bar if self.case.bar_is == "of bare" else median <= self.case.bar


def run_peers(
    names: Sequence[str], *, rounds: int, seconds: float, say: Callable[[str], None] = lambda _: None
) -> list[CaseRounds]:
    """Measure the cases `names`, each server `rounds` times for `seconds`, the order turned round every other time.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: a server failed, or a request did.
    """
    found = [CaseRounds(name) for name in names]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuseline-peers-")))
        say("starting the servers")
        echo = stack.enter_context(_started_echo())
        models = {
            case.model: stack.enter_context(_served(case, folder))
            for case in {each.case.model: each.case for each in found}.values()
        }
        for number in range(rounds):
            for each in found:
                say(f"round {number + 1} of {rounds}: {each.case.title}")
                model = models[each.case.model]
                steps: list[Callable[[], None]] = [
                    lambda each=each, model=model: each.fuseline.append(_fuseline(each.case, model, seconds)),  # type: ignore[misc]
                    lambda each=each, model=model: each.echo.append(_echo(each.case, model, echo, seconds)),  # type: ignore[misc]
                    lambda each=each, model=model: _bare_backend(each, model, seconds),  # type: ignore[misc]
                ]
                for step in steps if number % 2 == 0 else steps[::-1]:
                    step()
    return found


def as_json(found: Sequence[CaseRounds]) -> dict[str, Any]:
    """Every round, and the verdicts."""
    return {
        "backend": _BACKEND,
        "cases": [
            asdict(each)
            | {
                "case": asdict(each.case),
                "measure": asdict(spread_of(each.measures())),
                "times_echo": asdict(spread_of(_times_echo(each))),
                "passed": each.passed,
            }
            for each in found
        ],
    }


def as_table(found: Sequence[CaseRounds]) -> Table:
    """A row for each case: medians, and median (quartiles) of what the bar is about."""
    table = Table(title=f"the front end beside a bare grpc.aio echo, {len(found[0].fuseline)} rounds")
    table.add_column("load")
    headings = ("requests/s", "CPU ms", "p50 ms", "echo's requests/s", "CPU ms", "p50 ms", "times echo's CPU")
    for heading in (*headings, "bare backend ms", "measured", "bar", ""):
        table.add_column(heading, justify="right")
    for each in found:
        case = each.case
        table.add_row(
            case.title,
            *_cells(each.fuseline),
            *_cells(each.echo),
            f"{spread_of(_times_echo(each)):.2f}",
            f"{spread_of(each.bare_backend_ms).median:.3f} for {each.bare_backend_rows}",
            f"{spread_of(each.measures()):.3f}",
            f"{case.bar:g} {case.bar_is}",
            "PASS" if each.passed else "FAIL",
        )
    return table


@dataclass(frozen=True, slots=True)
class _Server:
    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Model:
    server: _Server
    engine: EngineProcess
    pixels: NDArray[np.uint8]
    expected: NDArray[np.float32]

    def requests(self, case: Case) -> tuple[bytes, ...]:
        return tuple(
            ClassifyRequest(
                images=[Image(raw=self.pixels[i].tobytes()) for i in _pictures(index, case)]
            ).SerializeToString()
            for index in range(_PICTURES)
        )


@contextmanager
def _served(case: Case, folder: Path) -> Iterator[_Model]:
    """Start the model of `case` behind a server, and bare."""
    with ExitStack() as stack:
        if case.network:
            subject, threads = stack.enter_context(open_subject(case.network)), 0
        else:
            package = write_tiny_package(folder / str(case.side), side=case.side, classes=case.classes)
            subject, threads = Subject("tiny", package, None), 1
        engine = stack.enter_context(EngineProcess(_BACKEND, subject, threads=threads))
        pixels = generated_pictures((case.side, case.side, 3), CONCURRENCY)
        flags = ("--backend", _BACKEND, "--precision", "fp32", "--threads", str(threads))
        server = stack.enter_context(started_server(subject.package_folder, *flags))
        yield _Model(_Server(server.address, server.pid), engine, pixels, engine.logits(pixels))


def _pictures(index: int, case: Case) -> list[int]:
    return [(index + offset) % _PICTURES for offset in range(case.images)]


def _fuseline(case: Case, model: _Model, seconds: float) -> Stretch:
    method = CLASSIFY_STREAM if case.stream else CLASSIFY
    stretch, answers = _measured(case, method, model.requests(case), model.server, seconds)
    for index, answer in answers:
        expected = model.expected[_pictures(index, case)]
        check_response("the server", "fp32", ClassifyResponse.FromString(answer), expected)
    return stretch


def _echo(case: Case, model: _Model, echo: _Server, seconds: float) -> Stretch:
    return _measured(case, ECHO_STREAM if case.stream else ECHO, model.requests(case), echo, seconds)[0]


def _bare_backend(rounds: CaseRounds, model: _Model, seconds: float) -> None:
    rounds.bare_backend_rows = 1 if rounds.case.concurrency == 1 else len(model.pixels)
    # Calls of the tiny model are so short that a part of the time has thousands.
    stretch_s = seconds if rounds.case.network else seconds / 4
    calls = model.engine.measure(model.pixels[: rounds.bare_backend_rows], stretch_s).call_s
    rounds.bare_backend_ms.append(1e3 * float(np.median(calls)))


def _measured(
    case: Case, method: str, requests: tuple[bytes, ...], server: _Server, seconds: float
) -> tuple[Stretch, tuple[tuple[int, bytes], ...]]:
    """The stretch, and (request's index, answer) of some of its answers."""
    load = Load(
        server.address,
        requests=requests,
        burn_in_requests=requests,
        concurrency=case.concurrency,
        seconds=seconds,
        method=method,
        streams=1 if case.stream else 0,
    )
    edges: list[tuple[float, float]] = []
    result = run_closed_loop(load, lambda: edges.append((time.monotonic(), cpu_seconds(server.pid) or 0.0)))
    if result.errors:
        raise BackendError(f"requests failed: {dict(result.errors)}")
    (start_s, before_s), (end_s, after_s) = edges
    cpu_ms = 1e3 * (after_s - before_s) / (end_s - start_s) / result.requests_per_s
    return Stretch(result.requests_per_s, cpu_ms, 1e3 * float(np.median(result.latency_s))), result.answers


@contextmanager
def _started_echo() -> Iterator[_Server]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo_server"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not _ADDRESS.fullmatch(address):
            raise BackendError(f"the echo server never came up: it said {address!r}")
        yield _Server(address, process.pid)
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def _times_echo(each: CaseRounds) -> tuple[float, ...]:
    return pair_ratios(
        [stretch.server_cpu_ms_per_request for stretch in each.fuseline],
        [stretch.server_cpu_ms_per_request for stretch in each.echo],
    )


def _cells(stretches: Sequence[Stretch]) -> tuple[str, str, str]:
    return (
        f"{spread_of([each.requests_per_s for each in stretches]).median:.0f}",
        f"{spread_of([each.server_cpu_ms_per_request for each in stretches]).median:.3f}",
        f"{spread_of([each.p50_ms for each in stretches]).median:.2f}",
    )


def main(
    case: Annotated[str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(CASES)}.")] = ",".join(CASES),
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="How long each stretch is measured.")] = 2.0,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every figure here.")] = None,
) -> None:
    """Measure what the front end costs beside a bare grpc.aio echo."""
    names = tuple(dict.fromkeys(case.split(",")))
    if unknown := [name for name in names if name not in CASES]:
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(CASES)}", param_hint="--case")
    if json is not None:
        check_writable(json)
    command = f"fuseline bench peers --case {','.join(names)} --rounds {rounds} --seconds {seconds:g}"
    taken = conditions(command)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    found = run_peers(names, rounds=rounds, seconds=seconds, say=lambda text: progress.print(text, markup=False))
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    out.print(as_table(found))
    out.print(describe(taken.facts["machine"]), markup=False, soft_wrap=True)
    out.print(command, markup=False, soft_wrap=True)
    if json is not None:
        write_result(json, "peers", taken, as_json(found))
    if not all(each.passed for each in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
