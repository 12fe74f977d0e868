"""`fuseline bench gpu`."""

import re
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from fuseline.benchmarks.harness.options import MAX_BATCH, choices_of, counts_of, measuring
from fuseline.benchmarks.harness.results import RESULTS, check_writable, command_line, conditions, write_result


def gpu(
    model: Annotated[
        str, typer.Option(metavar="NAME|CHECKPOINT,…", help="Networks; those by name get random weights.")
    ] = "resnet18,resnet50",
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Batch sizes.")] = "1,8,32,128,256",
    contender: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Which contenders, in this order; all unless given.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="cuda|cpu", help="cpu: what runs there, to try the benchmark.")
    ] = "cuda",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long each stretch is measured.")] = 0.3,
    minutes: Annotated[
        float, typer.Option(min=0.01, max=1440, help="For all of it; the largest batches are left out first.")
    ] = 9.0,
    input_side: Annotated[
        int | None,
        typer.Option(min=8, max=4096, help="Height and width of the pictures; by default the network's."),
    ] = None,
    compile_mode: Annotated[str, typer.Option(metavar="MODE", help="torch.compile's mode.")] = "reduce-overhead",
    probe: Annotated[
        bool, typer.Option("--probe", help="Only say, as JSON, which engines TensorRT for RTX builds and runs here.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Default, on a GPU: benchmarks/results/gpu-NAME.json."),
    ] = None,
) -> None:
    """Compare PyTorch, torch.compile, ONNX Runtime and TensorRT on a GPU, with shares of what it can do at most.

    The exit code is 1 if a contender answers wrongly.
    """
    from fuseline.benchmarks.gpu.comparison import GpuPlan, run_gpu
    from fuseline.benchmarks.gpu.contender import COMPILE_MODES, CONTENDERS, DEVICES
    from fuseline.benchmarks.gpu.device import gpu_facts
    from fuseline.benchmarks.gpu.report import as_json, as_tables

    if probe:
        _probe(json)
        return
    plan = GpuPlan(
        models=tuple(dict.fromkeys(model.split(","))),
        batches=counts_of("--batch", batch, MAX_BATCH),
        contenders=choices_of("--contender", contender, CONTENDERS) if contender else tuple(CONTENDERS),
        device=choices_of("--device", device, DEVICES)[0],
        rounds=rounds,
        seconds=seconds,
        minutes=minutes,
        input_side=input_side,
        compile_mode=choices_of("--compile-mode", compile_mode, COMPILE_MODES)[0],
    )
    if json is None and device == "cuda" and (facts := gpu_facts()) is not None:
        json = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', facts['name'].lower())}.json"
    command = command_line(
        "gpu",
        model=",".join(Path(name).name for name in plan.models),
        batch=batch,
        contender=contender,
        device=device,
        rounds=rounds,
        seconds=seconds,
        minutes=minutes,
        input_side=input_side,
        compile_mode=compile_mode,
    )
    with measuring("gpu", command, json) as (say, finish):
        found = run_gpu(plan, say)
        finish(Group(*as_tables(found)), as_json(found))
    if not found.answers_right:
        raise typer.Exit(1)


def _probe(json: Path | None) -> None:
    from fuseline.benchmarks.gpu.probe import probe_rtx

    if json is not None:
        check_writable(json)
    taken = conditions("fuseline bench gpu --probe")
    found = probe_rtx()
    print(dumps(found, indent=2))
    if json is not None:
        write_result(json, "gpu-probe", taken, found)
