"""What the commands of `fuseline bench` share: options, their parsing, and how a run begins and ends."""

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.harness.results import check_writable, conditions, write_result
from fuseline.serve.errors import InputError

T = TypeVar("T", bound=str)

MAX_BATCH = 4096
_PIPE_WIDTH = 200

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every figure here.")]
Seconds = Annotated[float, typer.Option(min=0.05, max=3600, help="How long each stretch is measured.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads of each engine; 0: its own default.")]


@contextmanager
def measuring(
    name: str, command: str, json: Path | None
) -> Iterator[tuple[Callable[[str], None], Callable[[Any, dict[str, Any]], None]]]:
    """Yield `say`, for progress on stderr, and `finish`, which prints the table and writes the JSON file."""
    if json is not None:
        check_writable(json)
    taken = conditions(command)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    # A table squeezed into a pipe's 80 columns would lose its figures.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    with progress.status("") as status:

        def say(text: str) -> None:
            status.update(text) if progress.is_terminal else progress.print(text, markup=False)

        def finish(table: Any, figures: dict[str, Any]) -> None:
            status.stop()
            out.print(table)
            out.print(describe(taken.facts["machine"]), markup=False, soft_wrap=True)
            out.print(command, markup=False, soft_wrap=True)
            if json is not None:
                write_result(json, name, taken, figures)
                out.print(f"written: {json}", markup=False, soft_wrap=True)

        yield say, finish


def choices_of(flag: str, text: str, offered: Collection[T]) -> tuple[T, ...]:
    """The names in `text`, separated by commas, each once. Raises `InputError` if one is not offered."""
    by_name: dict[str, T] = {name: name for name in offered}
    chosen = dict.fromkeys(text.split(","))
    if unknown := [name for name in chosen if name not in by_name]:
        raise InputError(f"{flag} {text}: {', '.join(unknown)} is none of {', '.join(offered)}")
    return tuple(by_name[name] for name in chosen)


def choice_of(flag: str, text: str, offered: Collection[T]) -> T:
    """The one name that `text` is. Raises `InputError` if it is not offered."""
    chosen = choices_of(flag, text, offered)
    if len(chosen) > 1:
        raise InputError(f"{flag} {text}: one of {', '.join(offered)} was expected")
    return chosen[0]


def counts_of(flag: str, text: str, largest: int) -> tuple[int, ...]:
    """The numbers in `text`, separated by commas, each once. Raises `InputError` unless all are 1 to `largest`."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= largest for part in parts):
        raise InputError(f"{flag} {text!r}: numbers from 1 to {largest} separated by commas were expected, as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


def rates_of(text: str) -> tuple[float, ...]:
    """The rates in `text`, separated by commas, each once. Raises `InputError` unless all are above 0."""
    if not all(re.fullmatch(r"\d{1,6}(\.\d{1,3})?", part, re.ASCII) and float(part) > 0 for part in text.split(",")):
        raise InputError(f"--rate {text!r}: requests a second above 0 separated by commas were expected, as 50,100.5")
    return tuple(dict.fromkeys(float(part) for part in text.split(",")))
