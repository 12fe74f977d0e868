"""`fuseline bench plan`."""

from pathlib import Path
from typing import Annotated

import typer

from fuseline.benchmarks.harness.options import measuring
from fuseline.benchmarks.harness.results import RESULTS, command_line


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PACKAGE|CHECKPOINT",
            help="NAME: resnet18, resnet50 …, with random weights. 10 ms a row at least.",
        ),
    ] = "resnet18",
    minutes: Annotated[
        float, typer.Option(min=1, max=600, help="How long is measured; a round takes about 4 minutes on 2 cores.")
    ] = 40.0,
    backend: Annotated[str, typer.Option(metavar="NAME", help="As of `fuseline serve`.")] = "auto",
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Default: benchmarks/results/plan-check.json.")
    ] = None,
) -> None:
    """Hold what `fuseline plan` predicts against real servers: one with all cores, and two that share them.

    At 0.5, 0.8 and 0.95 of capacity Poisson requests are sent to the servers over gRPC, and the same arrivals are
    simulated on a profile measured in the same minutes. The exit code is 1 if the predicted p50 or p99 misses the
    measured one by more than 20 %, in the median of the rounds.
    """
    from fuseline.benchmarks.harness.options import choice_of
    from fuseline.benchmarks.harness.subject import open_subject
    from fuseline.benchmarks.plan.check import run_check
    from fuseline.benchmarks.plan.check_report import as_json, as_table
    from fuseline.serve.backends import BACKENDS

    chosen = choice_of("--backend", backend, ("auto", *BACKENDS))
    command = command_line("plan", model, minutes=f"{minutes:g}", backend=backend)
    path = json or RESULTS / "plan-check.json"
    with measuring("plan-check", command, path) as (say, finish), open_subject(model) as subject:
        run = run_check(subject.package_folder, minutes=minutes, flags=("--backend", chosen), say=say)
        finish(as_table(run), as_json(run))
    if not run.passed:
        raise typer.Exit(1)
