"""`fuseline bench engines`."""

from pathlib import Path
from typing import Annotated

import typer

from fuseline.benchmarks.harness.options import MAX_BATCH, Json, Seconds, Threads, choices_of, counts_of, measuring
from fuseline.benchmarks.harness.results import command_line


def engines(
    model: Annotated[
        str, typer.Argument(metavar="PACKAGE|CHECKPOINT|NAME", help="NAME: resnet18, resnet50 …, with random weights.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The package's checkpoint, to compare with eager PyTorch.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Batch sizes.")] = "1,8,32",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 5,
    seconds: Seconds = 2.0,
    threads: Threads = 0,
    engine: Annotated[
        str, typer.Option("--engines", metavar="NAME,…", help="Which to compare; all is every one that runs here.")
    ] = "all",
    json: Json = None,
) -> None:
    """Compare PyTorch (eager, compiled, folded; FP32, BF16), ONNX Runtime and OpenVINO (FP32, INT8, BF16), TensorRT."""
    batches = counts_of("--batch", batch, MAX_BATCH)
    from fuseline.benchmarks.engines.compare import as_json, as_table, compare_engines
    from fuseline.benchmarks.engines.contenders import CONTENDERS, INT8_CONTENDERS
    from fuseline.benchmarks.harness.subject import open_subject

    contenders = CONTENDERS if engine == "all" else choices_of("--engines", engine, CONTENDERS)
    command = command_line(
        "engines",
        model,
        checkpoint=checkpoint,
        batch=batch,
        repeats=repeats,
        seconds=seconds,
        threads=threads,
        engines=engine,
    )
    int8 = any(name in INT8_CONTENDERS for name in contenders)
    with measuring("engines", command, json) as (say, finish), open_subject(model, checkpoint, int8=int8) as subject:
        say("preparing the model")
        found = compare_engines(
            subject, batches, repeats=repeats, seconds=seconds, threads=threads, contenders=contenders, say=say
        )
        finish(as_table(found, subject.title), as_json(found))
