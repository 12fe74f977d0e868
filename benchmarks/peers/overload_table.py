"""What the contenders kept of their own capacity under overload, as a table."""

from collections.abc import Sequence

from rich.table import Table

from fuseline.benchmarks.harness.stats import spread_of
from fuseline.benchmarks.peers.cases import CONTENDERS
from fuseline.benchmarks.peers.overload import OverloadRounds, OverloadStretch
from fuseline.benchmarks.serving.figures import GENERATOR_LIMIT

_LEAST_SHARE = 0.005
"""Share of the requests below which a status isn't named."""


def as_overload_table(found: OverloadRounds) -> Table:
    """Medians of each contender under each load; goodput as a share of the capacity with its quartiles."""
    case = found.case
    repeats = max(map(len, found.rounds.values()), default=0)
    table = Table(title=f"{case.title}: answered within {case.deadline_ms:g} ms, medians of {repeats} rounds")
    table.add_column("contender")
    headings = ("load", "capacity/s", "offered/s", "goodput/s", "goodput /\nown capacity", "p50 ms", "p99 ms")
    for heading in (*headings, "generator\nCPU", "refused"):
        table.add_column(heading, justify="right")
    table.add_column("by status")
    is_limited = False
    for name, rounds in found.rounds.items():
        for index, load in enumerate(case.loads):
            stretches = [each.stretches[index] for each in rounds]
            busiest = max(each.generator_cpu_share for each in stretches)
            is_limited |= busiest > GENERATOR_LIMIT
            table.add_row(
                CONTENDERS[name].title if not index else "",
                f"{load:g} x",
                f"{_median([each.capacity_per_s for each in stretches]):.1f}",
                f"{_median([each.offered_per_s for each in stretches]):.1f}",
                f"{_median([each.goodput_per_s for each in stretches]):.1f}",
                f"{spread_of([each.goodput_of_capacity for each in stretches]):.3f}",
                _milliseconds([each.p50_ms for each in stretches]),
                _milliseconds([each.p99_ms for each in stretches]),
                f"{busiest:.0%}{'*' if busiest > GENERATOR_LIMIT else ''}",
                f"{_median([sum(each.refused.values()) for each in stretches]):.0%}",
                _statuses(stretches),
            )
        table.add_section()
    table.caption = "\n".join([*(["* the load generator may be the limit"] if is_limited else []), *_wrong(found)])
    table.caption_justify = "left"
    return table


def _wrong(found: OverloadRounds) -> list[str]:
    return [
        f"{CONTENDERS[name].title}: {wrong} of {sum(each.checked_answers for each in rounds)} checked answers wrong"
        for name, rounds in found.rounds.items()
        if (wrong := sum(each.wrong_answers for each in rounds))
    ]


def _statuses(stretches: Sequence[OverloadStretch]) -> str:
    names = dict.fromkeys(status for each in stretches for status in each.refused)
    shares = {name: _median([each.refused.get(name, 0.0) for each in stretches]) for name in names}
    return "\n".join(f"{share:.0%} {name}" for name, share in shares.items() if share >= _LEAST_SHARE)


def _milliseconds(values: Sequence[float | None]) -> str:
    """Median of the rounds that had answers."""
    there = [value for value in values if value is not None]
    return f"{_median(there):.1f}" if there else ""


def _median(values: Sequence[float]) -> float:
    return spread_of(values).median
