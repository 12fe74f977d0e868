"""`fuseline bench headline`: the headline. PyTorch, the bare backends and the service, turn by turn in one run.

A round is: eager PyTorch FP32 at batch 32 and at batch 1; the fastest other way of PyTorch, which a trial before the
rounds found, at batch 32; then for each backend in each precision the bare backend at batch 32, by one instance and by
lanes, and at concurrency 32 the server and the least server that there can be (`plain_server`). Every contender has a
process of its own and only one works at a time; how busy the others were meanwhile is measured and reported, so that an
idle server that spins would be seen. Every second round goes backwards. Ratios are taken within a round.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import CONTENDERS, PYTORCH, TITLES, contender_of
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb, with_cores_used_by
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.harness.stats import best_of
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.headline import plain_server
from fuseline.benchmarks.load.target import Target, connect
from fuseline.benchmarks.serving.figures import ServingFigures
from fuseline.benchmarks.serving.measure import measure_serving
from fuseline.serve.backends.base import OpenRequest
from fuseline.serve.backends.registry import backend_entry, title_of
from fuseline.serve.errors import BackendError, BackendUnavailableError, InputError, VerificationError

T = TypeVar("T")

BATCH = 32
"""Rows of a bare call and concurrency of the load."""


@dataclass(slots=True)
class BackendRounds:
    """One backend in one precision. Lists have a value for each round."""

    backend: str
    precision: str
    is_default: bool
    """Whether it is what `--backend auto` takes here."""
    bare_images_per_s: list[float] = field(default_factory=list)
    """By one instance."""
    bare_lanes_images_per_s: list[float] = field(default_factory=list)
    """By `lanes` instances side by side; empty if the backend opens none."""
    lanes: int | None = None
    served: list[ServingFigures] = field(default_factory=list)
    plain: list[ServingFigures] = field(default_factory=list)
    """By `fuseline.benchmarks.headline.plain_server`."""
    server_ready_s: float | None = None
    server_peak_mb: float | None = None
    """Largest resident set, 10^6 bytes, after all rounds."""

    @property
    def title(self) -> str:
        """The backend and the precision, for people."""
        return f"{title_of(self.backend)} {self.precision.upper()}"

    @property
    def best_bare_images_per_s(self) -> list[float]:
        """Of one instance or of the lanes, by the median."""
        return best_of(self.bare_images_per_s, self.bare_lanes_images_per_s)


@dataclass(slots=True)
class HeadlineRun:
    """What one run measured. Lists have a value for each round."""

    model: str
    backends: list[BackendRounds]
    eager_images_per_s: list[float] = field(default_factory=list)
    eager_latency_ms: list[float] = field(default_factory=list)
    """Median call at batch 1."""
    trial_images_per_s: dict[str, float] = field(default_factory=dict)
    """Every other way of PyTorch, of `PYTORCH`, that runs here, to what it computed in the trial before the rounds."""
    fastest_pytorch_images_per_s: list[float] = field(default_factory=list)
    """Of the fastest in the trial."""
    idle_cores: list[float] = field(default_factory=list)
    """CPU seconds a second of all contenders but the measured one, of every stretch."""

    @property
    def fastest_pytorch(self) -> str:
        """The fastest contender of the trial."""
        return max(self.trial_images_per_s, key=self.trial_images_per_s.__getitem__)

    @property
    def best_pytorch_images_per_s(self) -> list[float]:
        """Of that or of eager FP32, by the median."""
        return best_of(self.eager_images_per_s, self.fastest_pytorch_images_per_s)


def rows_of(backends: Sequence[str], precisions: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return (backend, precision) of what is measured: in `precisions`, or FP32, and BF16 where this CPU has it.

    Raises:
        InputError: none of `backends` computes in one of `precisions`.
    """
    rows = [
        (backend, precision)
        for backend in backends
        for precision in precisions or ("fp32", "bf16")
        if contender_of(backend, precision) in CONTENDERS
        and (precisions or precision == "fp32" or _can_compute(backend, precision))
    ]
    if missing := [precision for precision in precisions if precision not in {row[1] for row in rows}]:
        raise InputError(f"--precision {','.join(missing)}: none of {', '.join(backends)} computes in it")
    return rows


def _can_compute(backend: str, precision: str) -> bool:
    request = OpenRequest("cpu", (1,), precision=precision)
    return backend_entry(backend).load().why_unavailable(None, request) is None


def run_headline(
    subject: Subject,
    *,
    rows: Sequence[tuple[str, str]],
    rounds: int,
    seconds: float,
    threads: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> HeadlineRun:
    """Measure the `rows` that `rows_of` gave; each stretch takes `seconds`.

    `threads` is given to PyTorch, the bare backends and the servers alike.

    Raises:
        InputError: there is no checkpoint for eager PyTorch.
        BackendUnavailableError: a backend can't run here.
        VerificationError: an answer differs from eager PyTorch's.
        BackendError: a request failed.
    """
    if subject.checkpoint is None:
        raise InputError(f"{subject.title} is a package without its checkpoint, which eager PyTorch needs; name that")
    with ExitStack() as stack:

        def engine(name: str) -> EngineProcess:
            say(f"loading {TITLES.get(name, name)}")
            process = stack.enter_context(EngineProcess(name, subject, threads))
            check_logits(name, process.precision, process.logits(pixels), expected)
            return process

        with EngineProcess("auto", subject, threads) as automatic:
            default = automatic.name, automatic.precision
        pixels = generated_pictures(subject.package.manifest.input.pixel_shape, BATCH)
        say(f"loading {TITLES['eager']}")
        eager = stack.enter_context(EngineProcess("eager", subject, threads))
        expected = eager.logits(pixels)
        run = HeadlineRun(subject.title, [BackendRounds(*row, is_default=row == default) for row in rows])
        run.trial_images_per_s = _trial(subject, threads, pixels, expected, seconds, say)
        fastest = engine(run.fastest_pytorch)
        bare, targets, plain, servers = [], [], [], []
        for each in run.backends:
            process = engine(contender_of(each.backend, each.precision))
            lanes = plain_server.lane_count()
            each.lanes = lanes if process.has_lanes and lanes > 1 else None
            say(f"starting the server on {each.title}")
            # Batch sizes are left to the server, as users leave them.
            flags = ("--backend", each.backend, "--precision", each.precision, "--threads", str(threads))
            server = stack.enter_context(started_server(subject.package_folder, *flags))
            bare.append(process)
            servers.append(server)
            targets.append(_held_against_eager(connect(server.address, server.pid), each, eager, process))
            least = stack.enter_context(started_server(subject.package_folder, *flags, module=plain_server.__name__))
            plain.append(replace(targets[-1], address=least.address, pid=least.pid))

        steps = _steps(run, _Contenders(eager, fastest, bare, targets, plain, pixels), seconds)
        for number in range(rounds):
            for what, step in steps if number % 2 == 0 else steps[::-1]:
                say(f"round {number + 1} of {rounds}: {what}")
                step()
        for each, server in zip(run.backends, servers, strict=True):
            each.server_ready_s = server.ready_s
            each.server_peak_mb = peak_memory_mb(server.pid)
        return run


def _trial(
    subject: Subject,
    threads: int,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float32],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Return images/s of every way of PyTorch but eager FP32, each for `seconds`; some can't run here."""
    rates = {}
    for name in PYTORCH[1:]:
        say(f"trying {TITLES[name]}")
        try:
            with EngineProcess(name, subject, threads) as engine:
                check_logits(name, engine.precision, engine.logits(pixels), expected)
                rates[name] = engine.measure(pixels, seconds).images_per_s
        except BackendUnavailableError as error:
            say(f"{TITLES[name]} is left out: {error}")
    return rates


@dataclass(frozen=True, slots=True)
class _Contenders:
    """What is measured; all of it runs throughout, one of it works."""

    eager: EngineProcess
    fastest: EngineProcess
    bare: list[EngineProcess]
    """Of each backend of the run, as `targets`."""
    targets: list[Target]
    plain: list[Target]
    pixels: NDArray[np.uint8]

    @property
    def pids(self) -> list[int]:
        servers = [target.pid for target in (*self.targets, *self.plain) if target.pid is not None]
        return [*(process.pid for process in (self.eager, self.fastest, *self.bare)), *servers]


def _steps(run: HeadlineRun, contenders: _Contenders, seconds: float) -> list[tuple[str, Callable[[], None]]]:
    """(what it measures, the stretch that adds it to `run`) in the order of a round."""
    eager, pixels = contenders.eager, contenders.pixels

    def alone(active: int | None, work: Callable[[], T]) -> T:
        idle = [pid for pid in contenders.pids if pid != active]
        result, idle_cores = with_cores_used_by(idle, work)
        run.idle_cores.append(idle_cores)
        return result

    def batch(process: EngineProcess, rates: list[float], lanes: int | None = None) -> None:
        rates.append(alone(process.pid, lambda: process.measure(pixels, seconds, lanes=lanes)).images_per_s)

    def eager_single() -> None:
        calls = alone(eager.pid, lambda: eager.measure(pixels[:1], seconds)).call_s
        run.eager_latency_ms.append(1e3 * float(np.median(calls)))

    def serve(what: str, found: list[ServingFigures], target: Target) -> None:
        figures = alone(target.pid, lambda: measure_serving(target, concurrency=BATCH, seconds=seconds))
        if figures.errors:
            raise BackendError(f"requests failed while {what} was measured: {figures.errors}")
        found.append(figures)

    steps: list[tuple[str, Callable[[], None]]] = [
        ("eager PyTorch, batch 32", partial(batch, eager, run.eager_images_per_s)),
        ("eager PyTorch, batch 1", eager_single),
        (TITLES[run.fastest_pytorch], partial(batch, contenders.fastest, run.fastest_pytorch_images_per_s)),
    ]
    for each, process, target, plain in zip(
        run.backends, contenders.bare, contenders.targets, contenders.plain, strict=True
    ):
        steps.append((f"bare {each.title}", partial(batch, process, each.bare_images_per_s)))
        if each.lanes is not None:
            in_lanes = partial(batch, process, each.bare_lanes_images_per_s, each.lanes)
            steps.append((f"bare {each.title}, {each.lanes} lanes", in_lanes))
        for what, found, served in (
            (f"served on {each.title}", each.served, target),
            (f"a plain server on {each.title}", each.plain, plain),
        ):
            steps.append((what, partial(serve, what, found, served)))
    return steps


def _held_against_eager(target: Target, rounds: BackendRounds, eager: EngineProcess, bare: EngineProcess) -> Target:
    """`target`, which has to answer as eager PyTorch; in less than FP32 as the bare backend.

    Two classes may be so near each other that rounding to less than FP32 changes which is best: no wrong answer.
    """
    who = f"the server on {rounds.title}"
    if (target.model.backend, target.precision) != (rounds.backend, bare.precision):
        raise VerificationError(f"{who} serves {target.model.backend} {target.precision}; bare it is {bare.precision}")
    expected = eager.logits(target.pixels)
    check_logits(who, target.precision, target.expected, expected)
    return replace(target, expected=expected if rounds.precision == "fp32" else bare.logits(target.pixels))
