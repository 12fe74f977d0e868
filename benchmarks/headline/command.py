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
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 12,
    seconds: Seconds = 2.5,
    threads: Threads = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Default: benchmarks/results/spine-MODEL.json.")
    ] = None,
) -> None:
    """Measure the headline in one run: eager PyTorch, the bare backends and the service.

    The exit code is 1 if the service misses a bar: 0.95 of the bare backend, 1.7 of eager PyTorch FP32.
    """
    from fuseline.benchmarks.harness.subject import open_subject
    from fuseline.benchmarks.headline.measure import run_headline
    from fuseline.benchmarks.headline.report import as_json, as_table, verdicts
    from fuseline.serve.backends import BACKENDS

    backends = choices_of("--backend", backend, BACKENDS)
    # Results keep the headline's former name, by which earlier ones are found.
    path = json or RESULTS / f"spine-{Path(model).stem}.json"
    command = command_line("headline", model, backend=backend, rounds=rounds, seconds=seconds, threads=threads)
    with measuring("spine", command, path) as (say, finish), open_subject(model) as subject:
        say("preparing the model")
        run = run_headline(subject, backends=backends, rounds=rounds, seconds=seconds, threads=threads, say=say)
        finish(as_table(run), as_json(run))
    if not all(verdict.passed for verdict in verdicts(run)):
        raise typer.Exit(1)
