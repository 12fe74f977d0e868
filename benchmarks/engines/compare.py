"""`fuseline bench engines`: eager PyTorch and the runtimes on the same batches, turn by turn in one run."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from fuseline.benchmarks.engines.contenders import CONTENDERS, PYTORCH, TELL_PRECISION, TITLES
from fuseline.benchmarks.engines.process import EngineProcess, Stretch
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.stats import pair_ratios, spread_of
from fuseline.benchmarks.harness.subject import Subject
from fuseline.serve.errors import BackendUnavailableError


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """One contender at one batch size. Tuples have a value for each repeat."""

    candidate: str
    """The contender, under the name that result files have for it."""
    precision: str
    batch: int
    images_per_s: tuple[float, ...]
    call_ms: tuple[float, ...]
    """Median duration of a call."""
    ratios: tuple[float, ...]
    """Images per second over the baseline's in the same repeat."""
    start_s: float
    first_answer_s: float
    """Seconds from nothing to the first logits of the first batch size, with what is compiled or warmed for it."""
    peak_memory_mb: float | None
    """Over all batch sizes so far."""


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """What one run found."""

    baseline: str
    figures: tuple[EngineFigures, ...]
    skipped: dict[str, str]
    """Contender to why it didn't run."""

    def best_pytorch(self, batch: int) -> EngineFigures | None:
        """Return the contender of `PYTORCH` with the largest median images/s at `batch`; None if none was measured."""
        measured = [each for each in self.figures if each.batch == batch and each.candidate in PYTORCH]
        return max(measured, key=lambda each: spread_of(each.images_per_s).median, default=None)

    def ratios_to_best_pytorch(self, figures: EngineFigures) -> tuple[float, ...]:
        """Return images/s over those of `best_pytorch` in the same repeat; () if there is none."""
        best = self.best_pytorch(figures.batch)
        return () if best is None else pair_ratios(figures.images_per_s, best.images_per_s)


def compare_engines(
    subject: Subject,
    batches: Sequence[int],
    *,
    repeats: int,
    seconds: float,
    threads: int = 0,
    contenders: Iterable[str] = CONTENDERS,
    say: Callable[[str], None] = lambda _: None,
) -> EngineComparison:
    """Measure every contender that runs here, for `seconds` at a time, one at a time, `repeats` times around.

    The first contender that runs is the baseline, eager PyTorch where there is a checkpoint. Every second round goes
    backwards, so that a machine that slows down steadily favours nobody.

    Raises:
        VerificationError: a contender's logits aren't the baseline's; nothing was timed.
        BackendUnavailableError: no contender runs here.
    """
    with ExitStack() as stack:
        engines, skipped = _open(contenders, subject, threads, stack, say)
        baseline = engines[0]
        pixels = generated_pictures(subject.package.manifest.input.pixel_shape, max(batches))
        first_answer_s = {}
        for engine in engines:
            say(f"first answer: {TITLES[engine.name]}")
            began = time.monotonic()
            engine.logits(pixels[: batches[0]])
            first_answer_s[engine.name] = engine.start_s + time.monotonic() - began
        for batch in batches:
            say(f"checking the answers at batch {batch}")
            expected = baseline.logits(pixels[:batch])
            for engine in engines[1:]:
                check_logits(
                    f"{engine.name} at batch {batch}", engine.precision, engine.logits(pixels[:batch]), expected
                )
        stretches: dict[tuple[str, int], list[Stretch]] = {(e.name, batch): [] for e in engines for batch in batches}
        for repeat in range(repeats):
            for batch in batches:
                for engine in engines if repeat % 2 == 0 else engines[::-1]:
                    say(f"repeat {repeat + 1} of {repeats}, batch {batch}: {TITLES[engine.name]}")
                    stretches[engine.name, batch].append(engine.measure(pixels[:batch], seconds))
        figures = [
            _figures(
                engine,
                batch,
                stretches[engine.name, batch],
                stretches[baseline.name, batch],
                first_answer_s[engine.name],
            )
            for batch in batches
            for engine in engines
        ]
        return EngineComparison(baseline.name, tuple(figures), skipped)


def as_json(comparison: EngineComparison) -> dict[str, Any]:
    """Everything measured, with medians and quartiles."""
    batches = dict.fromkeys(figures.batch for figures in comparison.figures)
    best = {batch: found.candidate for batch in batches if (found := comparison.best_pytorch(batch)) is not None}
    return {
        "baseline": comparison.baseline,
        "best_pytorch": best,
        "skipped": comparison.skipped,
        "engines": [
            asdict(figures)
            | {
                "images_per_s_spread": asdict(spread_of(figures.images_per_s)),
                "ratio_spread": asdict(spread_of(figures.ratios)),
                "ratio_to_best_pytorch_spread": asdict(spread_of(ratios)) if ratios else None,
            }
            for figures in comparison.figures
            for ratios in [comparison.ratios_to_best_pytorch(figures)]
        ],
    }


def as_table(comparison: EngineComparison, title: str) -> Table:
    """Median (quartiles) of the repeats."""
    table = Table(title=f"{title}: median (quartiles) of {len(comparison.figures[0].images_per_s)} repeats")
    table.add_column("batch", justify="right")
    table.add_column("engine")
    baseline = f"x {TITLES[comparison.baseline]}"
    for heading in ("images/s", "ms a call", baseline, "x best PyTorch", "first answer, s", "peak MB"):
        table.add_column(heading, justify="right")
    previous = comparison.figures[0].batch
    for figures in comparison.figures:
        if figures.batch != previous:
            table.add_section()
        previous = figures.batch
        ratios = comparison.ratios_to_best_pytorch(figures)
        is_best = figures is comparison.best_pytorch(figures.batch)
        table.add_row(
            str(figures.batch),
            _title(figures),
            f"{spread_of(figures.images_per_s)}",
            f"{spread_of(figures.call_ms).median:.2f}",
            "1" if figures.candidate == comparison.baseline else f"{spread_of(figures.ratios):.2f}",
            "1: it is the best" if is_best else f"{spread_of(ratios):.2f}" if ratios else "",
            f"{figures.first_answer_s:.1f}",
            "?" if figures.peak_memory_mb is None else f"{figures.peak_memory_mb:.0f}",
        )
    table.caption = "\n".join(f"{TITLES[name]} did not run: {reason}" for name, reason in comparison.skipped.items())
    return table


def _title(figures: EngineFigures) -> str:
    title = TITLES[figures.candidate]
    return title if figures.candidate in TELL_PRECISION else f"{title} {figures.precision.upper()}"


def _open(
    contenders: Iterable[str], subject: Subject, threads: int, stack: ExitStack, say: Callable[[str], None]
) -> tuple[list[EngineProcess], dict[str, str]]:
    engines: list[EngineProcess] = []
    skipped: dict[str, str] = {}
    for name in contenders:
        say(f"loading {TITLES[name]}")
        try:
            engines.append(stack.enter_context(EngineProcess(name, subject, threads)))
        except BackendUnavailableError as error:
            skipped[name] = str(error)
    if not engines:
        reasons = "; ".join(f"{TITLES[name]}: {reason}" for name, reason in skipped.items())
        raise BackendUnavailableError(f"nothing to measure runs here: {reasons}")
    return engines, skipped


def _figures(
    engine: EngineProcess, batch: int, own: Sequence[Stretch], base: Sequence[Stretch], first_answer_s: float
) -> EngineFigures:
    rates = tuple(stretch.images_per_s for stretch in own)
    return EngineFigures(
        candidate=engine.name,
        precision=engine.precision,
        batch=batch,
        images_per_s=rates,
        call_ms=tuple(1e3 * float(np.median(stretch.call_s)) for stretch in own),
        ratios=pair_ratios(rates, [stretch.images_per_s for stretch in base]),
        start_s=engine.start_s,
        first_answer_s=first_answer_s,
        peak_memory_mb=engine.peak_memory_mb(),
    )
