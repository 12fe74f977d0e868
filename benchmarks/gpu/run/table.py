"""A run as tables: for people on a terminal, and as Markdown for docs/gpu.md."""

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fuseline.benchmarks.gpu.run.record import Figure, Row, RunRecord, StepRecord
from fuseline.benchmarks.harness.machine import describe

_WHERE_FIGURES_COUNT = ("measured", "passed")


def as_group(record: RunRecord) -> Group:
    """Everything, for a terminal."""
    return Group(*(part for step in record.steps for part in _terminal(step)), Text("\n".join(_summary(record))))


def as_markdown(record: RunRecord) -> str:
    """Everything, for a page."""
    lines = [line for step in record.steps for line in (*_markdown(step), "")]
    return "".join(f"{line}\n" for line in (*lines, *(f"- {_cell(line)}" for line in _summary(record))))


def _summary(record: RunRecord) -> list[str]:
    lines = [describe(record.machine)]
    if record.gpu:
        facts = record.gpu
        lines.append(
            f"{facts.get('name')}, driver {facts.get('driver')}, compute capability {facts.get('compute_capability')}"
        )
    if record.bundle:
        lines.append(f"bundle of {record.bundle['revision'] or 'no revision'} for {record.bundle['target']}")
    seconds = sum(step.seconds or 0 for step in record.steps)
    lines.append(f"{record.command}: {seconds / 60:.1f} of {record.minutes:g} minutes, begun {record.started_utc}")
    if not record.finished:
        lines.append("the run was cut off: what is here is what it had until then")
    return lines


def _heading(step: StepRecord) -> str:
    took = "" if step.seconds is None or step.limit_s is None else f", {step.seconds:.0f} of {step.limit_s:.0f} s"
    return f"{step.title}: {step.status}{took}{f' ({step.reason})' if step.reason else ''}"


def _terminal(step: StepRecord) -> Iterator[Table | Text]:
    yield Text(_heading(step), style="bold")
    for columns, rows in _blocks(step.rows):
        table = Table()
        table.add_column("what", overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", overflow="fold")
        table.add_column("note", overflow="fold")
        for row in rows:
            # As Text: what stands in brackets is no markup here.
            table.add_row(*map(Text, (row.what, *(shown(row.figures.get(name)) for name in columns), _note(row))))
        yield table


def _markdown(step: StepRecord) -> Iterator[str]:
    yield f"**{_cell(_heading(step))}**"
    for columns, rows in _blocks(step.rows):
        yield ""
        yield f"| {' | '.join(('what', *columns, 'note'))} |"
        yield f"|{'---|' * (len(columns) + 2)}"
        for row in rows:
            cells = [row.what, *(shown(row.figures.get(name)) for name in columns), _note(row)]
            yield f"| {' | '.join(map(_cell, cells))} |"


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[list[str], list[Row]]]:
    """Neighbours that have figures of one kind, with those without figures among them."""
    block: list[Row] = []
    columns: list[str] = []
    for row in rows:
        if row.figures and columns and not set(row.figures) & set(columns):
            yield columns, block
            block, columns = [], []
        block.append(row)
        columns += [name for name in row.figures if name not in columns]
    if block:
        yield columns, block


def _note(row: Row) -> str:
    status = "" if row.status in _WHERE_FIGURES_COUNT else row.status
    if row.status == "passed":
        status = "passed"
    return ": ".join(part for part in (status, row.reason) if part)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def shown(figure: Figure) -> str:
    """Three digits of a number, all of an integer and of a text."""
    if figure is None:
        return ""
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, float):
        return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
    return str(figure)
