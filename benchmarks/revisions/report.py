"""The comparison's rows as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.revisions.verdict import EXACT_TOLERANCE, MEMORY_SLACK, SIGNIFICANCE, CostVerdict

BLIND_ABOVE = 0.15
"""A floor above this hides what the comparison is there to find."""


@dataclass(slots=True)
class Row:
    """One cost of both revisions."""

    name: str
    unit: str
    base: float | None = None
    head: float | None = None
    verdict: CostVerdict | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """`base` or `head` to why it couldn't be measured."""
    skipped: str = ""
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """`regressed`, `improved`, `unchanged`; `new` if only base can't run it, `broken` if head can't, `skipped`.

        What head can't run counts against it: a gate that can't measure must not open.
        """
        if self.skipped:
            return "skipped"
        if "head" in self.failed:
            return "broken"
        if self.failed:
            return "new"
        assert self.verdict is not None
        return self.verdict.outcome


def as_markdown(rows: Sequence[Row], base: str, head: str, rounds: int, facts: dict[str, Any]) -> str:
    """A verdict, a table, what it means and where it was measured."""
    worse = [row for row in rows if row.outcome in ("regressed", "broken")]
    lines = [
        f"### {head} against {base}: {f'{len(worse)} of {len(rows)} costs regressed' if worse else 'no regression'}",
        "",
        "| cost | base | head | difference | noise floor | p | verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
        *(_line(row) for row in rows),
        "",
        f"{rounds} rounds, ABBA. A time regressed if its difference is significant (Mann-Whitney, p < {SIGNIFICANCE:g})"
        " and beyond the noise floor, which base against base gives; a count, if it rose by more than "
        f"{EXACT_TOLERANCE:.0%}, and memory by more than {MEMORY_SLACK:.0f} bytes too.",
    ]
    if any(row.verdict is not None and row.verdict.floor > BLIND_ABOVE for row in rows):
        lines += [
            "",
            f"**A noise floor is above {BLIND_ABOVE:.0%}: what lies below goes unseen. Take more `--rounds`.**",
        ]
    notes = [f"- {row.name}: {who} can't run it: {why}" for row in rows for who, why in row.failed.items()]
    notes += [f"- {row.name}: {row.skipped}" for row in rows if row.skipped]
    if notes:
        lines += ["", *notes]
    return "\n".join([*lines, "", f"<sub>{describe(facts['machine'])}; {facts['command']}</sub>"])


def as_json(rows: Sequence[Row], base: str, head: str) -> dict[str, Any]:
    """Every row with its samples: seconds by round, ABBA and stretch."""
    return {"base": base, "head": head, "costs": [asdict(row) | {"outcome": row.outcome} for row in rows]}


def _line(row: Row) -> str:
    verdict = row.verdict
    cells = [row.name, _figure(row.base, row.unit), _figure(row.head, row.unit)]
    if verdict is None:
        cells += ["", "", ""]
    else:
        p_value = "" if verdict.p_value is None else f"{verdict.p_value:.2g}"
        cells += [f"{verdict.difference:+.1%}", f"{verdict.floor:.1%}", p_value]
    mark = f"**{row.outcome}**" if row.outcome in ("regressed", "broken", "improved") else row.outcome
    return f"| {' | '.join([*cells, mark])} |"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}".strip() if value >= 100 else f"{value:.3g} {unit}".strip()
