"""`fuseline bench report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json …", help="What --json of serve, engines, loadgen and peers wrote."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where report.html and the PNGs go.")],
) -> None:
    """Make one HTML page and PNGs of result files: latency, throughput, batch sizes, engines, overload."""
    from fuseline.benchmarks.report.page import write_report

    for path in write_report(results, out):
        print(f"written: {path}")
