"""Who is told how far a long piece of work is: lines of text, and on a terminal a bar below them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Listener(Protocol):
    """Who is told."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of the work called `what`, such as `training`, are done."""

    def say(self, line: str) -> None:
        """Something worth a line."""


@contextmanager
def listener_for(console: Console) -> Iterator[Listener]:
    """A progress bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield ProgressBar(bar)


class PlainLines:
    """Tells by lines of text alone."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say nothing: lines are enough where nobody watches."""

    def say(self, line: str) -> None:
        """Print `line` at once, also into a pipe."""
        print(line, flush=True)


class ProgressBar:
    """Tells by lines above a bar; a new piece of work takes the bar of the one before."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: tuple[str, TaskID] | None = None

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is None or self._task[0] != what:
            if self._task is not None:
                self._bar.remove_task(self._task[1])
            self._task = what, self._bar.add_task(what, total=total)
        self._bar.update(self._task[1], completed=done, total=total)

    def say(self, line: str) -> None:
        """Print `line` above the bar."""
        self._bar.console.print(line, highlight=False, markup=False)
