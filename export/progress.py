"""How an export reports its progress: a live display on a terminal, plain lines elsewhere, or the log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display

_log = logging.getLogger(__name__)


class Step:
    """One step of the work, while it runs."""

    def __init__(self, title: str, display: Display | None = None) -> None:
        self.result = ""
        self._display = display
        self._task = display.add_task(title, total=None) if display else None

    def advance_to(self, fraction: float) -> None:
        """Show that `fraction` of the step, 0 to 1, is done."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=fraction, total=1.0)

    def done(self, result: str) -> None:
        """Set what the step found, in a few words; it is shown when the step ends."""
        self.result = result


class Progress(Protocol):
    """How the pipeline reports."""

    def step(self, title: str) -> AbstractContextManager[Step]:
        """Return a context manager around one step."""
        ...

    def warn(self, text: str) -> None:
        """Show something that the user should act on."""
        ...


class LogProgress:
    """Reports to the log: steps as INFO, warnings as WARNING."""

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """See `Progress.step`."""
        step = Step(title)
        yield step
        _log.info("%s: %s", title, step.result)

    def warn(self, text: str) -> None:
        """See `Progress.warn`."""
        _log.warning("%s", text)


class ConsoleProgress:
    """Reports to stderr, so that stdout stays for results."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """See `Progress.step`."""
        if not self._console.is_terminal:
            step = Step(title)
            yield step
            self._console.print(f"{title}: {step.result}" if step.result else title, markup=False)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with Display(*columns, console=self._console, transient=True) as display:
            step = Step(title, display)
            yield step
        self._console.print("[green]✓[/] ", end="")
        # A title may hold the user's file names, whose brackets are not markup.
        self._console.print(title, markup=False, end="")
        self._console.print(f": {step.result}" if step.result else "", markup=False, style="dim")

    def warn(self, text: str) -> None:
        """See `Progress.warn`."""
        self._console.print("[yellow]warning:[/] ", end="")
        self._console.print(text, markup=False)
