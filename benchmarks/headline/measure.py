"""`fuseline bench headline`: the headline. Eager PyTorch, the bare backends and the service, turn by turn in one run.

A round is: eager PyTorch FP32 at batch 32 and at batch 1; then for each backend the bare backend at batch 32 and the
server at concurrency 32. Every contender has a process of its own and only one works at a time; how busy the others
were meanwhile is measured and reported, so that an idle server that spins would be seen. Every second round goes
backwards. Ratios are taken within a round.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import TITLES
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb, with_cores_used_by
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.load.target import Target, connect
from fuseline.benchmarks.serving.figures import ServingFigures
from fuseline.benchmarks.serving.measure import measure_serving
from fuseline.serve.errors import BackendError, InputError, VerificationError

T = TypeVar("T")

BATCH = 32
"""Rows of a bare call and concurrency of the load."""


@dataclass(slots=True)
class BackendRounds:
    """One backend. Lists have a value for each round."""

    backend: str
    is_default: bool
    """Whether it is what `--backend auto` takes here."""
    bare_images_per_s: list[float] = field(default_factory=list)
    served: list[ServingFigures] = field(default_factory=list)
    server_ready_s: float | None = None
    server_peak_mb: float | None = None
    """Largest resident set, 10^6 bytes, after all rounds."""


@dataclass(slots=True)
class HeadlineRun:
    """What one run measured. Lists have a value for each round."""

    model: str
    backends: list[BackendRounds]
    eager_images_per_s: list[float] = field(default_factory=list)
    eager_latency_ms: list[float] = field(default_factory=list)
    """Median call at batch 1."""
    idle_cores: list[float] = field(default_factory=list)
    """CPU seconds a second of all contenders but the measured one, of every stretch."""


def run_headline(
    subject: Subject,
    *,
    backends: Sequence[str],
    rounds: int,
    seconds: float,
    threads: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> HeadlineRun:
    """Measure; each stretch takes `seconds`. `threads` is given to PyTorch, the bare backends and the servers alike.

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
            return stack.enter_context(EngineProcess(name, subject, threads))

        with EngineProcess("auto", subject, threads) as automatic:
            default = automatic.name
        eager, bare = engine("eager"), {name: engine(name) for name in backends}
        pixels = generated_pictures(subject.package.manifest.input.row_shape, BATCH)
        expected = eager.logits(pixels)
        for name, process in bare.items():
            check_logits(f"bare {name}", process.precision, process.logits(pixels), expected)
        targets, servers = {}, {}
        for name in backends:
            say(f"starting the server on {TITLES[name]}")
            # Batch sizes are left to the server, as users leave them.
            flags = ("--backend", name, "--precision", bare[name].precision, "--threads", str(threads))
            servers[name] = server = stack.enter_context(started_server(subject.package_folder, *flags))
            targets[name] = _expecting_eager(connect(server.address, server.pid), eager, bare[name])

        run = HeadlineRun(subject.title, [BackendRounds(name, name == default) for name in backends])
        steps = _steps(run, _Contenders(eager, bare, targets, pixels), seconds)
        for number in range(rounds):
            for what, step in steps if number % 2 == 0 else steps[::-1]:
                say(f"round {number + 1} of {rounds}: {what}")
                step()
        for each in run.backends:
            each.server_ready_s = servers[each.backend].ready_s
            each.server_peak_mb = peak_memory_mb(servers[each.backend].pid)
        return run


@dataclass(frozen=True, slots=True)
class _Contenders:
    """What is measured; all of it runs throughout, one of it works."""

    eager: EngineProcess
    bare: dict[str, EngineProcess]
    targets: dict[str, Target]
    pixels: NDArray[np.uint8]

    @property
    def pids(self) -> list[int]:
        servers = [target.pid for target in self.targets.values() if target.pid is not None]
        return [self.eager.pid, *(process.pid for process in self.bare.values()), *servers]


def _steps(run: HeadlineRun, contenders: _Contenders, seconds: float) -> list[tuple[str, Callable[[], None]]]:
    """(what it measures, the stretch that adds it to `run`) in the order of a round."""
    eager, pixels = contenders.eager, contenders.pixels

    def alone(active: int | None, work: Callable[[], T]) -> T:
        idle = [pid for pid in contenders.pids if pid != active]
        result, idle_cores = with_cores_used_by(idle, work)
        run.idle_cores.append(idle_cores)
        return result

    def eager_batch() -> None:
        run.eager_images_per_s.append(alone(eager.pid, lambda: eager.measure(pixels, seconds)).images_per_s)

    def eager_single() -> None:
        calls = alone(eager.pid, lambda: eager.measure(pixels[:1], seconds)).call_s
        run.eager_latency_ms.append(1e3 * float(np.median(calls)))

    def bare_batch(rounds: BackendRounds) -> None:
        process = contenders.bare[rounds.backend]
        rounds.bare_images_per_s.append(alone(process.pid, lambda: process.measure(pixels, seconds)).images_per_s)

    def serve(rounds: BackendRounds) -> None:
        target = contenders.targets[rounds.backend]
        figures = alone(target.pid, lambda: measure_serving(target, concurrency=BATCH, seconds=seconds))
        if figures.errors:
            raise BackendError(f"requests failed while {rounds.backend} was measured: {figures.errors}")
        rounds.served.append(figures)

    steps: list[tuple[str, Callable[[], None]]] = [
        ("eager PyTorch, batch 32", eager_batch),
        ("eager PyTorch, batch 1", eager_single),
    ]
    for each in run.backends:
        steps.append((f"bare {TITLES[each.backend]}", partial(bare_batch, each)))
        steps.append((f"served on {TITLES[each.backend]}", partial(serve, each)))
    return steps


def _expecting_eager(target: Target, eager: EngineProcess, bare: EngineProcess) -> Target:
    who = f"the server on {target.model.backend}"
    if (target.model.backend, target.precision) != (bare.name, bare.precision):
        raise VerificationError(f"{who} {target.precision} can't be compared with bare {bare.name} {bare.precision}")
    expected = eager.logits(target.pixels)
    check_logits(who, target.precision, target.expected, expected)
    return Target(target.address, target.model, target.pixels, expected, target.pid)
