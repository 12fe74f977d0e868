"""Shows a build's progress: a bar on a terminal, a few lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_LINES = 4


@contextmanager
def show_build(
    title: str, say: Callable[[str], None], stream: TextIO | None = None
) -> Iterator[Callable[[str, float], None]]:
    """Yield an `on_progress` for `build_engine` that shows how far the build has come.

    Args:
        title: says what is built.
        say: writes a line where `stream` is no terminal: one at the start and one for each quarter.
        stream: the terminal on which the bar is drawn, and removed when the block ends; None: stderr.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        say(title)
        yield _in_quarters(title, say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    phase = TextColumn("{task.fields[phase]}", markup=False, style="dim")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        phase,
    )
    with Progress(*columns, console=Console(file=stream, highlight=False), transient=True) as display:
        task = display.add_task(title, total=1.0, phase="")
        yield lambda phase, share: display.update(task, completed=share, phase=phase)


def _in_quarters(title: str, say: Callable[[str], None]) -> Callable[[str, float], None]:
    quarters = 0

    def on_progress(_: str, share: float) -> None:
        nonlocal quarters
        if int(share * _LINES) > quarters:
            quarters = int(share * _LINES)
            say(f"{title}: {quarters * 100 // _LINES} %")

    return on_progress
