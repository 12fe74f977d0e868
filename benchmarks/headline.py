"""`fuseline bench spine`: the headline. Eager PyTorch, the bare backends and the service, turn by turn in one run.

A round is: eager PyTorch FP32 at batch 32 and at batch 1; then for each backend the bare backend at batch 32 and the
server at concurrency 32. Every contender has a process of its own and only one works at a time; how busy the others
were meanwhile is measured and reported, so that an idle server that spins would be seen. Every second round goes
backwards. Ratios are taken within a round.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fuseline.benchmarks.engines.contenders import TITLES
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import peak_memory_mb, with_cores_used_by
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.serving.measure import ServingFigures, Target, connect, measure_serving
from fuseline.serve.errors import BackendError, InputError, VerificationError

T = TypeVar("T")

BATCH = 32
"""Rows of a bare call and concurrency of the load."""
SERVED_TO_BARE_BAR = 0.95
SERVED_TO_EAGER_BAR = 1.7
IDLE_LIMIT = 0.02
"""Cores that all idle contenders together may use while another one is measured."""


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
class SpineRun:
    """What one run measured. Lists have a value for each round."""

    model: str
    backends: list[BackendRounds]
    eager_images_per_s: list[float] = field(default_factory=list)
    eager_latency_ms: list[float] = field(default_factory=list)
    """Median call at batch 1."""
    idle_cores: list[float] = field(default_factory=list)
    """CPU seconds a second of all contenders but the measured one, of every stretch."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bar of the headline."""

    what: str
    ratio: Spread
    bar: float

    @property
    def passed(self) -> bool:
        """Whether the median reaches the bar."""
        return self.ratio.median >= self.bar


def run_spine(
    subject: Subject,
    *,
    backends: Sequence[str],
    rounds: int,
    seconds: float,
    threads: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> SpineRun:
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
            flags = ("--backend", name, "--threads", str(threads))
            servers[name] = server = stack.enter_context(started_server(subject.package_folder, *flags))
            targets[name] = _expecting_eager(connect(server.address, server.pid), eager, bare[name])

        run = SpineRun(subject.title, [BackendRounds(name, name == default) for name in backends])
        steps = _steps(run, _Contenders(eager, bare, targets, pixels), seconds)
        for number in range(rounds):
            for what, step in steps if number % 2 == 0 else steps[::-1]:
                say(f"round {number + 1} of {rounds}: {what}")
                step()
        for each in run.backends:
            each.server_ready_s = servers[each.backend].ready_s
            each.server_peak_mb = peak_memory_mb(servers[each.backend].pid)
        return run


def verdicts(run: SpineRun) -> list[Verdict]:
    """Every backend's server against the bare backend; against eager PyTorch the one that a user gets unasked."""
    found = []
    for rounds in run.backends:
        served = [figures.images_per_s for figures in rounds.served]
        to_bare = spread_of(pair_ratios(served, rounds.bare_images_per_s))
        title = f"served on {TITLES[rounds.backend]}"
        found.append(Verdict(f"{title} / the bare backend", to_bare, SERVED_TO_BARE_BAR))
        if rounds.is_default:
            to_eager = spread_of(pair_ratios(served, run.eager_images_per_s))
            found.append(Verdict(f"{title} / eager PyTorch FP32", to_eager, SERVED_TO_EAGER_BAR))
    return found


def as_json(run: SpineRun) -> dict[str, Any]:
    """Every round, the medians and quartiles of every ratio, the verdicts."""
    return {
        "model": run.model,
        "batch": BATCH,
        "rounds": asdict(run),
        "summary": [
            {
                "what": what,
                "images_per_s": asdict(spread_of(rates)),
                "ratio_to_eager": asdict(spread_of(pair_ratios(rates, run.eager_images_per_s))),
                "ratio_to_bare": asdict(spread_of(pair_ratios(rates, bare))) if bare else None,
            }
            for what, rates, bare in _rows(run)
        ],
        "max_idle_cores": max(run.idle_cores),
        "verdicts": [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts(run)],
    }


def as_table(run: SpineRun) -> Table:
    """Median (quartiles) of the rounds, and the verdicts below."""
    rounds = len(run.eager_images_per_s)
    table = Table(title=f"{run.model}, batch and concurrency {BATCH}: median (quartiles) of {rounds} rounds")
    table.add_column("contender")
    for heading in ("images/s", "x eager", "x bare", "p50 ms", "p99 ms", "server CPU ms", "generator CPU"):
        table.add_column(heading, justify="right")
    served = {f"served on {TITLES[each.backend]}": each.served for each in run.backends}
    for what, rates, bare in _rows(run):
        table.add_row(
            what,
            f"{spread_of(rates)}",
            f"{spread_of(pair_ratios(rates, run.eager_images_per_s)):.3f}",
            f"{spread_of(pair_ratios(rates, bare)):.3f}" if bare else "",
            *(_serving_cells(served[what]) if what in served else ("", "", "", "")),
        )
    lines = [f"eager PyTorch FP32, one image: {spread_of(run.eager_latency_ms)} ms"]
    lines += [
        f"the server on {TITLES[each.backend]}: ready in {each.server_ready_s:.1f} s, at most "
        f"{each.server_peak_mb:.0f} MB resident"
        for each in run.backends
        if each.server_ready_s is not None and each.server_peak_mb is not None
    ]
    lines += [f"{'PASS' if v.passed else 'FAIL'}  {v.what}: {v.ratio:.3f}, bar {v.bar:g}" for v in verdicts(run)]
    if (busiest := max(run.idle_cores)) > IDLE_LIMIT:
        lines.append(f"WARNING: idle contenders used up to {busiest:.2f} of a core while others were measured")
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


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


def _steps(run: SpineRun, contenders: _Contenders, seconds: float) -> list[tuple[str, Callable[[], None]]]:
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


def _rows(run: SpineRun) -> list[tuple[str, list[float], list[float] | None]]:
    """(contender, images/s of each round, those of the bare backend to compare with)."""
    rows: list[tuple[str, list[float], list[float] | None]] = [(TITLES["eager"], run.eager_images_per_s, None)]
    for rounds in run.backends:
        title = TITLES[rounds.backend]
        rows.append((f"bare {title}", rounds.bare_images_per_s, None))
        served = [figures.images_per_s for figures in rounds.served]
        rows.append((f"served on {title}", served, rounds.bare_images_per_s))
    return rows


def _serving_cells(served: Sequence[ServingFigures]) -> tuple[str, ...]:
    cpu = [figures.server_cpu_ms_per_request for figures in served if figures.server_cpu_ms_per_request is not None]
    return (
        *(f"{spread_of([figures.latency_ms[name] for figures in served]).median:.1f}" for name in ("p50", "p99")),
        f"{spread_of(cpu).median:.2f}" if cpu else "?",
        f"{max(figures.generator_cpu_share for figures in served):.0%}",
    )
