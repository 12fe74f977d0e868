"""The headline's bars, and its figures for people and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fuseline.benchmarks.engines.contenders import TITLES
from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of
from fuseline.benchmarks.headline.measure import BATCH, BackendRounds, HeadlineRun
from fuseline.benchmarks.serving.figures import ServingFigures

SERVED_TO_BARE_BARS = {"fp32": 0.97, "int8": 0.9}
"""Precision to the least ratio of a server to its bare backend, of one instance or of lanes, whichever is faster."""
BF16_TO_FP32_BAR = 1.7
"""Least ratio of the two served on the same backend."""
SERVED_TO_EAGER_BAR = 1.7
IDLE_LIMIT = 0.02
"""Cores that all idle contenders together may use while another one is measured."""


@dataclass(frozen=True, slots=True)
class HeadlineVerdict:
    """One bar of the headline."""

    what: str
    ratio: Spread
    bar: float

    @property
    def passed(self) -> bool:
        """Whether the median reaches the bar."""
        return self.ratio.median >= self.bar


def verdicts(run: HeadlineRun) -> list[HeadlineVerdict]:
    """Servers against the bare backend, BF16 against FP32; against eager PyTorch the one that a user gets unasked."""
    found = []
    fp32 = {rounds.backend: _served(rounds) for rounds in run.backends if rounds.precision == "fp32"}
    for rounds in run.backends:
        served, what = _served(rounds), f"served on {rounds.title}"
        if (bar := SERVED_TO_BARE_BARS.get(rounds.precision)) is not None:
            to_bare = spread_of(pair_ratios(served, rounds.best_bare_images_per_s))
            found.append(HeadlineVerdict(f"{what} / the bare backend at its best", to_bare, bar))
        if rounds.precision == "bf16" and rounds.backend in fp32:
            to_fp32 = spread_of(pair_ratios(served, fp32[rounds.backend]))
            found.append(HeadlineVerdict(f"{what} / served in FP32", to_fp32, BF16_TO_FP32_BAR))
        if rounds.is_default:
            to_eager = spread_of(pair_ratios(served, run.eager_images_per_s))
            found.append(HeadlineVerdict(f"{what} / eager PyTorch FP32", to_eager, SERVED_TO_EAGER_BAR))
    return found


def _served(rounds: BackendRounds) -> list[float]:
    return [figures.images_per_s for figures in rounds.served]


def as_json(run: HeadlineRun) -> dict[str, Any]:
    """Every round, the medians and quartiles of every ratio, the verdicts."""
    return {
        "model": run.model,
        "batch": BATCH,
        "fastest_pytorch": run.fastest_pytorch,
        "rounds": asdict(run),
        "summary": [
            {
                "what": what,
                "images_per_s": asdict(spread_of(rates)),
                "ratio_to_eager": asdict(spread_of(pair_ratios(rates, run.eager_images_per_s))),
                "ratio_to_best_pytorch": asdict(spread_of(pair_ratios(rates, run.best_pytorch_images_per_s))),
                "ratio_to_bare": asdict(spread_of(pair_ratios(rates, bare))) if bare else None,
            }
            for what, rates, bare in _rows(run)
        ],
        "max_idle_cores": max(run.idle_cores),
        "verdicts": [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts(run)],
    }


def as_table(run: HeadlineRun) -> Table:
    """Median (quartiles) of the rounds, and the verdicts below."""
    rounds = len(run.eager_images_per_s)
    table = Table(title=f"{run.model}, batch and concurrency {BATCH}: median (quartiles) of {rounds} rounds")
    table.add_column("contender")
    for heading in (
        "images/s",
        "x eager FP32",
        "x best PyTorch",
        "x best bare",
        "p50 ms",
        "p99 ms",
        "server CPU ms",
        "generator CPU",
    ):
        table.add_column(heading, justify="right")
    served = {f"served on {each.title}": each.served for each in run.backends}
    served |= {f"a plain server on {each.title}": each.plain for each in run.backends if each.plain}
    for what, rates, bare in _rows(run):
        table.add_row(
            what,
            f"{spread_of(rates)}",
            f"{spread_of(pair_ratios(rates, run.eager_images_per_s)):.3f}",
            f"{spread_of(pair_ratios(rates, run.best_pytorch_images_per_s)):.3f}",
            f"{spread_of(pair_ratios(rates, bare)):.3f}" if bare else "",
            *(_serving_cells(served[what]) if what in served else ("", "", "", "")),
        )
    lines = [f"eager PyTorch FP32, one image: {spread_of(run.eager_latency_ms)} ms"]
    lines += [
        f"the server on {each.title}: ready in {each.server_ready_s:.1f} s, at most "
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


def _rows(run: HeadlineRun) -> list[tuple[str, list[float], list[float] | None]]:
    """(contender, images/s of each round, those of the bare backend to compare with)."""
    rows: list[tuple[str, list[float], list[float] | None]] = [
        (TITLES["eager"], run.eager_images_per_s, None),
        (TITLES[run.fastest_pytorch], run.fastest_pytorch_images_per_s, None),
    ]
    for each in run.backends:
        rows.append((f"bare {each.title}", each.bare_images_per_s, None))
        if each.lanes is not None:
            rows.append((f"bare {each.title}, {each.lanes} lanes", each.bare_lanes_images_per_s, None))
        bare = each.best_bare_images_per_s
        rows.append((f"served on {each.title}", _served(each), bare))
        if each.plain:
            rows.append((f"a plain server on {each.title}", [figures.images_per_s for figures in each.plain], bare))
    return rows


def _serving_cells(served: Sequence[ServingFigures]) -> tuple[str, ...]:
    cpu = [figures.server_cpu_ms_per_request for figures in served if figures.server_cpu_ms_per_request is not None]
    return (
        *(f"{spread_of([figures.latency_ms[name] for figures in served]).median:.1f}" for name in ("p50", "p99")),
        f"{spread_of(cpu).median:.2f}" if cpu else "?",
        f"{max(figures.generator_cpu_share for figures in served):.0%}",
    )
