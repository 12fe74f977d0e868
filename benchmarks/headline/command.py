"""`fuseline bench headline`."""

from pathlib import Path
from typing import Annotated

import typer

from fuseline.benchmarks.harness.options import Seconds, Threads, choices_of, measuring
from fuseline.benchmarks.harness.results import RESULTS, command_line


def headline(
    model: Annotated[
        str, typer.Argument(metavar="NAME|CHECKPOINT", help="NAME: resnet18, resnet50 …, with random weights.")
    ] = "resnet18",
    backend: Annotated[str, typer.Option(metavar="NAME,…", help="Which backends.")] = "onnxruntime,openvino",
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Which precisions; unless given fp32, and bf16 where the CPU has it."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 12,
    seconds: Seconds = 2.5,
    threads: Threads = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Default: benchmarks/results/spine-MODEL.json.")
    ] = None,
) -> None:
    """Measure the headline in one run: PyTorch as it is and at its best, the bare backends and the service.

    The exit code is 1 if the service misses a bar: of the bare backend 0.97 in FP32 and 0.9 in INT8, of eager PyTorch
    FP32 1.7, in BF16 1.7 of FP32.
    """
    from fuseline.benchmarks.harness.subject import open_subject
    from fuseline.benchmarks.headline.measure import rows_of, run_headline
    from fuseline.benchmarks.headline.report import as_json, as_table, verdicts
    from fuseline.serve.backends import BACKENDS
    from fuseline.serve.precision import PRECISIONS

    asked = () if precision is None else choices_of("--precision", precision, PRECISIONS)
    rows = rows_of(choices_of("--backend", backend, BACKENDS), asked)
    int8 = any(row_precision == "int8" for _, row_precision in rows)
    # Results keep the headline's former name, by which earlier ones are found.
    path = json or RESULTS / f"spine-{Path(model).stem}.json"
    command = command_line(
        "headline", model, backend=backend, precision=precision, rounds=rounds, seconds=seconds, threads=threads
    )
    with measuring("spine", command, path) as (say, finish), open_subject(model, int8=int8) as subject:
        say("preparing the model")
        run = run_headline(subject, rows=rows, rounds=rounds, seconds=seconds, threads=threads, say=say)
        finish(as_table(run), as_json(run))
    if not all(verdict.passed for verdict in verdicts(run)):
        raise typer.Exit(1)
