"""`fuseline bench compare`."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fuseline.benchmarks.harness.options import choices_of
from fuseline.benchmarks.harness.results import check_writable, conditions, write_result
from fuseline.benchmarks.revisions.verdict import MIN_ROUNDS

CASES = ("batcher", "decode", "server")
COUNTED_FOR = {"batcher": "batcher", "server": "service"}
"""What is counted with what is timed: the service is all of a server but gRPC's own part."""


def compare(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="Revision to compare with: a branch, a commit, or a checkout's folder."),
    ],
    head: Annotated[
        str,
        typer.Argument(metavar="HEAD", help="Revision that may be slower. A folder begins with `.` or `/`."),
    ] = ".",
    repository: Annotated[Path, typer.Option(metavar="DIR", help="The git repository of both.")] = Path(),
    case: Annotated[str, typer.Option(metavar="NAME,…", help="What is timed.")] = ",".join(CASES),
    rounds: Annotated[int, typer.Option(min=MIN_ROUNDS, max=1000, help="Of each case.")] = MIN_ROUNDS,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1440, help="For the rounds; if they take longer: exit 2.")
    ] = 15,
    exact: Annotated[bool, typer.Option(help="Also count instructions (where valgrind is) and memory.")] = True,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every sample here.")] = None,
) -> None:
    """Compare two revisions' costs and print a Markdown table. The exit code is 1 if one regressed."""
    from fuseline.benchmarks.revisions.compare import count_costs, measure_rounds, rows_of_timings, write_files
    from fuseline.benchmarks.revisions.report import as_json, as_markdown
    from fuseline.benchmarks.revisions.trees import shown, write_tree

    cases = choices_of("--case", case, CASES)
    if json is not None:
        check_writable(json)
    names = " ".join(shown(each) for each in (base, head))
    command = f"fuseline bench compare {names} --case {case} --rounds {rounds} --minutes {minutes:g}"
    taken = conditions(command + ("" if exact else " --no-exact"))
    progress = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        progress.print(text, markup=False)

    with tempfile.TemporaryDirectory(prefix="fuseline-compare-") as scratch:
        folder = Path(scratch)
        trees = (write_tree(base, repository, folder / "base"), write_tree(head, repository, folder / "head"))
        files = write_files(folder / "files")
        until = time.monotonic() + 60 * minutes
        timings = measure_rounds(*trees, files, cases, rounds, until, say)
        rows = [row for each in timings.values() for row in rows_of_timings(each)]
        if exact:
            rows += count_costs(*trees, files, [COUNTED_FOR[name] for name in cases if name in COUNTED_FOR], say)
    print(as_markdown(rows, trees[0].name, trees[1].name, rounds, taken.facts))
    if json is not None:
        write_result(json, "compare", taken, as_json(rows, trees[0].name, trees[1].name))
    if any(row.outcome in ("regressed", "broken") for row in rows):
        raise typer.Exit(1)
