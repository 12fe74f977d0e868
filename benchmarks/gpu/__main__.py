"""`python -m fuseline.benchmarks.gpu run|table`: a whole run on a GPU in some minutes, and the tables of its result."""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fuseline.benchmarks.harness.options import MAX_BATCH, choices_of, counts_of
from fuseline.serve.command_line import run_command_line
from fuseline.serve.errors import InputError

if TYPE_CHECKING:
    from fuseline.benchmarks.gpu.run.job import RunPlan

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_MAX_CALLERS = 10_000
_WIDTH = 200


@app.callback()
def gpu() -> None:
    """Run everything that a GPU is wanted for, and read the result."""


@app.command()
def run(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where gpu-run.json, .md and .log go.")],
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="For all of it.")] = 10.0,
    device: Annotated[str, typer.Option(metavar="cuda|cpu", help="cpu: rehearse what runs there.")] = "cuda",
    models: Annotated[
        str, typer.Option(metavar="NAME|CHECKPOINT,…", help="Networks; the first is exported and served too.")
    ] = "resnet50,resnet18",
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Batch sizes of the engines.")] = "128,32,8,1",
    callers: Annotated[str, typer.Option(metavar="N,N,…", help="Of a server, at a time.")] = "256,64",
    workers: Annotated[str, typer.Option(metavar="N,N,…", help="`serve --workers`, in this order.")] = "1,8,4",
    lanes: Annotated[
        str, typer.Option(metavar="N,N,…", help="`serve --lanes` beside the default; on the GPU the first.")
    ] = "1,2,4,8",
    images: Annotated[str, typer.Option(metavar="N,N,…", help="Of the requests with several.")] = "16,32",
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="Of each load on a server.")] = 2.0,
    steps: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Of machine, probe, package, engines, serving, tests, cpu; default: all."),
    ] = None,
    shared_gpu: Annotated[
        bool, typer.Option("--shared-gpu", help="Go on though others hold the GPU's memory.")
    ] = False,
) -> None:
    """Probe, export, measure, serve and test on this machine's GPU.

    Each step has a limit of time, and what it finds is written at once: a run that is cut off keeps what it had. The
    exit code is 0 if every step ran or says why not, 1 if something failed or answered wrongly.
    """
    from fuseline.benchmarks.gpu.contender import DEVICES
    from fuseline.benchmarks.gpu.run.job import RunPlan
    from fuseline.benchmarks.gpu.run.preflight import check_device, check_disk
    from fuseline.benchmarks.gpu.run.runner import STEPS, TABLE, run_all
    from fuseline.benchmarks.gpu.run.table import as_group, as_markdown
    from fuseline.benchmarks.gpu.subject import check_model

    plan = RunPlan(
        out=out,
        minutes=minutes,
        device=choices_of("--device", device, DEVICES)[0],
        models=tuple(dict.fromkeys(models.split(","))),
        batches=counts_of("--batch", batch, MAX_BATCH),
        callers=counts_of("--callers", callers, _MAX_CALLERS),
        workers=counts_of("--workers", workers, _MAX_CALLERS),
        lanes=counts_of("--lanes", lanes, _MAX_CALLERS),
        images=counts_of("--images", images, MAX_BATCH),
        seconds=seconds,
        steps=choices_of("--steps", steps, STEPS) if steps else (),
    )
    for model in plan.models:
        check_model(model)
    check_device(plan.device, shared=shared_gpu)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} can't be made: {error.strerror}") from error
    check_disk((out, Path(tempfile.gettempdir())))
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    record = run_all(plan, _command(plan), lambda text: progress.print(text, markup=False))
    (out / TABLE).write_text(as_markdown(record), encoding="utf-8")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(as_group(record))
    raise typer.Exit(record.exit_code)


@app.command()
def table(
    result: Annotated[Path, typer.Argument(metavar="FILE", help="gpu-run.json of a run.")],
) -> None:
    """Print a run's tables as Markdown, for docs/gpu.md."""
    from fuseline.benchmarks.gpu.run.record import read_record
    from fuseline.benchmarks.gpu.run.table import as_markdown

    print(as_markdown(read_record(result)), end="")


def _command(plan: "RunPlan") -> str:
    """What repeats the run, without folders."""

    def joined(values: Iterable[object]) -> str:
        return ",".join(map(str, values))

    options = {
        "minutes": f"{plan.minutes:g}",
        "device": plan.device,
        "models": joined(Path(model).name for model in plan.models),
        "batch": joined(plan.batches),
        "callers": joined(plan.callers),
        "workers": joined(plan.workers),
        "lanes": joined(plan.lanes),
        "images": joined(plan.images),
        "seconds": f"{plan.seconds:g}",
        "steps": joined(plan.steps),
    }
    return " ".join(["run.sh", *(f"--{name} {value}" for name, value in options.items() if value)])


if __name__ == "__main__":
    run_command_line(app)
