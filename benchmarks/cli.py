"""`fuseline bench engines|serve|report|loadgen|peers|compare|spine|read|gpu`."""

import re
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from fuseline.benchmarks.harness.options import Json, Seconds, Threads, choices_of, counts_of, measuring
from fuseline.benchmarks.harness.results import check_writable, command_line, conditions, write_result
from fuseline.benchmarks.serving import command as serving_commands
from fuseline.serve.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_RESULTS = Path("benchmarks") / "results"
_MAX_BATCH = 4096


@app.callback()
def bench() -> None:
    """Measure engines and servers. Answers are checked before they are timed."""


@app.command()
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
    """Compare PyTorch FP32 (eager, folded, compiled), ONNX Runtime and OpenVINO in FP32 and INT8, and TensorRT."""
    batches = counts_of("--batch", batch, _MAX_BATCH)
    from fuseline.benchmarks.engines.compare import as_json, as_table, compare_engines
    from fuseline.benchmarks.engines.contenders import CANDIDATES, INT8_CANDIDATES
    from fuseline.benchmarks.harness.subject import open_subject

    candidates = CANDIDATES if engine == "all" else choices_of("--engines", engine, CANDIDATES)
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
    int8 = any(name in INT8_CANDIDATES for name in candidates)
    with measuring("engines", command, json) as (say, finish), open_subject(model, checkpoint, int8=int8) as subject:
        say("preparing the model")
        found = compare_engines(
            subject, batches, repeats=repeats, seconds=seconds, threads=threads, candidates=candidates, say=say
        )
        finish(as_table(found, subject.title), as_json(found))


for command in (serving_commands.serve, serving_commands.loadgen, serving_commands.report):
    app.command()(command)


def _add_program(name: str, module: str, function: str, purpose: str) -> None:
    """Add a command that is a program of its own too: its options are declared there, and read when it is called."""

    @app.command(
        name,
        help=purpose,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def run(context: typer.Context) -> None:
        program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        program.command()(getattr(import_module(module), function))
        command = typer.main.get_command(program)
        raise typer.Exit(command.main(context.args, prog_name=context.command_path, standalone_mode=False) or 0)


_add_program(
    "peers",
    "fuseline.benchmarks.peers.command",
    "main",
    "Measure Fuseline beside a bare grpc.aio echo, Triton and Mosec.",
)
_add_program(
    "compare",
    "fuseline.benchmarks.revisions.command",
    "compare",
    "Compare two revisions' costs; exit code 1 if one regressed.",
)


@app.command()
def spine(
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
    from fuseline.benchmarks.headline import as_json, as_table, run_spine, verdicts
    from fuseline.serve.backends import BACKENDS

    backends = tuple(dict.fromkeys(backend.split(",")))
    if unknown := [name for name in backends if name not in BACKENDS]:
        raise InputError(f"--backend {backend}: {', '.join(unknown)} is none of {', '.join(BACKENDS)}")
    path = json or _RESULTS / f"spine-{Path(model).stem}.json"
    command = command_line("spine", model, backend=backend, rounds=rounds, seconds=seconds, threads=threads)
    with measuring("spine", command, path) as (say, finish), open_subject(model) as subject:
        say("preparing the model")
        run = run_spine(subject, backends=backends, rounds=rounds, seconds=seconds, threads=threads, say=say)
        finish(as_table(run), as_json(run))
    if not all(verdict.passed for verdict in verdicts(run)):
        raise typer.Exit(1)


@app.command()
def read(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A network of torchvision's.")] = "resnet152",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How many fresh processes read each file.")] = 3,
    json: Json = None,
) -> None:
    """Measure reading a checkpoint and recognising its network: seconds and peak memory, of torch.save and safetensors.

    The exit code is 1 above a bar: 3 s, and 3 times the file's size.
    """
    from fuseline.benchmarks.checkpoint_reading import as_json, as_table, measure_reading, written_network

    with measuring("read", command_line("read", model, repeats=repeats), json) as (say, finish):
        say("writing the files")
        with written_network(model) as (files, digest):
            readings = measure_reading(files, digest, repeats=repeats, say=say)
        finish(as_table(model, readings), as_json(model, readings))
    if not all(reading.passed for reading in readings):
        raise typer.Exit(1)


@app.command()
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
        batches=counts_of("--batch", batch, _MAX_BATCH),
        contenders=choices_of("--contender", contender, CONTENDERS) if contender else tuple(CONTENDERS),
        device=choices_of("--device", device, DEVICES)[0],
        rounds=rounds,
        seconds=seconds,
        minutes=minutes,
        input_side=input_side,
        compile_mode=choices_of("--compile-mode", compile_mode, COMPILE_MODES)[0],
    )
    if json is None and device == "cuda" and (facts := gpu_facts()) is not None:
        json = _RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', facts['name'].lower())}.json"
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
