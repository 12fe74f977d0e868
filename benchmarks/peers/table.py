"""What the contenders did and how the bars stand, as tables."""

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fuseline.benchmarks.harness.stats import spread_of
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS
from fuseline.benchmarks.peers.overload import OverloadRounds
from fuseline.benchmarks.peers.overload_table import as_overload_table
from fuseline.benchmarks.peers.rounds import BarVerdict, CaseRounds, Stretch, verdicts
from fuseline.benchmarks.serving.figures import GENERATOR_LIMIT


def as_tables(found: Sequence[CaseRounds | OverloadRounds], left_out: Mapping[str, str]) -> Group:
    """Medians of each contender in each case; each bar with median (quartiles); why somebody isn't there."""
    unable = {name: why for each in found for name, why in each.left_out.items()}
    plain = [each for each in found if isinstance(each, CaseRounds)]
    return Group(
        *([_figures(plain)] if plain else []),
        *(as_overload_table(each) for each in found if isinstance(each, OverloadRounds)),
        _bars(verdicts(found)),
        *(Text(why) for why in [*left_out.values(), *unable.values()]),
    )


def _figures(found: Sequence[CaseRounds]) -> Table:
    rounds = max((len(stretches) for each in found for stretches in each.stretches.values()), default=0)
    table = Table(title=f"Fuseline beside its peers: medians of {rounds} rounds")
    table.add_column("load")
    table.add_column("contender")
    headings = (
        "requests/s",
        "images/s",
        "server CPU ms\na request",
        "server CPU ms\nan image",
        "p50 ms",
        "p99 ms",
        "generator\nCPU",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    limited = False
    for each in found:
        rate = f" ({_median(_offered(each)):.1f}/s)" if each.capacity_per_s else ""
        for number, (name, stretches) in enumerate(each.stretches.items()):
            busiest = max((stretch.generator_cpu_share or 0.0 for stretch in stretches), default=0.0)
            limited |= busiest > GENERATOR_LIMIT
            table.add_row(
                f"{each.case.title}{rate}" if not number else "",
                CONTENDERS[name].title,
                *_cells(stretches),
                f"{busiest:.0%}{'*' if busiest > GENERATOR_LIMIT else ''}" if busiest else "",
            )
        table.add_section()
    if limited:
        table.caption = (
            "* the load generator may be the limit of requests/s and latency; server CPU is the server's own"
        )
        table.caption_justify = "left"
    return table


def _bars(found: Sequence[BarVerdict]) -> Table:
    table = Table(title="bars: median (quartiles) of ratios within a round")
    for heading in ("load", "what", "bar"):
        table.add_column(heading)
    table.add_column("measured", justify="right")
    table.add_column("")
    for verdict in found:
        spread = verdict.spread
        words = {True: "PASS", False: "FAIL", None: "not measured"}
        table.add_row(
            CASES[verdict.case].title,
            verdict.what,
            verdict.bar.text,
            "" if spread is None else f"{spread:.3f}",
            words[verdict.passed],
        )
    return table


def _cells(stretches: Sequence[Stretch]) -> tuple[str, ...]:
    cpu = [stretch for stretch in stretches if stretch.server_cpu_ms_per_request is not None]
    return (
        # Calls of the bare backend are no requests.
        f"{_median([stretch.requests_per_s for stretch in stretches]):.1f}" if cpu else "",
        f"{_median([stretch.images_per_s for stretch in stretches]):.1f}",
        f"{_median([stretch.measured('CPU') for stretch in cpu]):.3f}" if cpu else "",
        f"{_median([stretch.measured('CPU an image') for stretch in cpu]):.3f}" if cpu else "",
        *(
            f"{_median([stretch.measured(name) for stretch in stretches]):.2f}"
            if stretches[0].p50_ms is not None
            else ""
            for name in ("p50", "p99")
        ),
    )


def _offered(rounds: CaseRounds) -> list[float]:
    return [stretch.offered_per_s or 0.0 for stretches in rounds.stretches.values() for stretch in stretches]


def _median(values: Sequence[float]) -> float:
    return spread_of(values).median
