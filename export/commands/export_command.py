"""`export CHECKPOINT`, which is also `fuseline export` and `python -m export`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseline.export.commands.flags import (
    Assume,
    Ema,
    Factory,
    FactoryArguments,
    HeadFrom,
    HeadName,
    InputSize,
    Naming,
    Rename,
    Take,
    network_source,
)
from fuseline.export.facts.input_size import input_size_from_text
from fuseline.serve.command_line import run_command_line
from fuseline.serve.errors import InputError
from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.precision import PRECISIONS, listed

if TYPE_CHECKING:
    from fuseline.serve.model_package import Task

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("export")
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A trained ResNet: .pt, .pth, .th, .ckpt, .bin, .safetensors, an index of shards, or their folder.",
        ),
    ],
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Also write an FP16 graph, for engines; CPUs that have BF16 then compute in it."),
    ] = False,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Layers that stay in FP32 all the same; may come several times."),
    ] = None,
    strict_fp16: Annotated[
        bool, typer.Option("--strict-fp16", help="Fail where FP16 can't hold a layer, instead of keeping it in FP32.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write INT8 graphs, calibrated on half of the images.")
    ] = False,
    int8_bar: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of the other half, the share that must have PyTorch's top-1 class (multi-label: its set of labels); "
            f"default: {PRECISIONS['int8'].min_agreement:g}. Layers that INT8 harms most stay in FP32 until it holds.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Verify on these images instead of generated ones.")
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Verify on at most so many images of --images.")] = 1000,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|imagenet", help="Class names: one a line, a JSON list or map, or those of ImageNet."
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean of the training pixels scaled to 0..1.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Their standard deviation.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="single-label|multi-label",
            help="Whether a picture has one of the labels (softmax) or any number of them (a sigmoid for each); "
            "default: what the checkpoint says, or single-label.",
        ),
    ] = None,
    input_size: InputSize = None,
    input_format: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FORMAT",
            help=f"What the graphs take: {listed(INPUT_FORMATS)}. Floats are images that the client has normalised, "
            "(pixel / 255 - mean) / std, as an ordinary export takes them.",
        ),
    ] = "uint8-nhwc",
    input_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The input tensor's name for clients; default: image, or input for floats."),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output tensor's name; default: logits, or output with float input."),
    ] = None,
    assume: Assume = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse while anything that changes answers is assumed and not settled.")
    ] = False,
    ema: Ema = False,
    naming: Naming = None,
    rename: Rename = None,
    head_from: HeadFrom = None,
    head: HeadName = None,
    take: Take = None,
    factory: Factory = None,
    factory_arguments: FactoryArguments = None,
    name: Annotated[str | None, typer.Option(help="The model's name; default: the folder's.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The package's folder; default: the checkpoint's name.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing package.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(metavar="smNN", help="Build a TensorRT engine for this compute capability, without a GPU."),
    ] = None,
) -> None:
    """Turn a trained ResNet checkpoint into a model package that `fuseline serve` serves.

    BatchNorm is folded into the convolutions, the network is written as ONNX, and every artifact that this machine can
    run is held against eager PyTorch FP32. Nothing is written unless it is equal.
    """
    # Here, so that --help and a wrong flag answer without the seconds that torch takes to import.
    from fuseline.export.artifacts import Fp16Options, Int8Options
    from fuseline.export.pipeline import ExportOptions, export_checkpoint
    from fuseline.export.progress import ConsoleProgress

    if not fp16 and (keep_fp32 or strict_fp16):
        raise InputError("--keep-fp32 and --strict-fp16 say how the FP16 graph is made; add --fp16")
    if int8_bar is not None and not int8:
        raise InputError("--int8-bar says how good the INT8 graph must be; add --int8")
    options = ExportOptions(
        source=network_source(
            checkpoint,
            ema=ema,
            naming=naming,
            rename=rename,
            head_from=head_from,
            head=head,
            take=take,
            factory=factory,
            factory_arguments=factory_arguments,
            assume=assume,
        ),
        command=_command_line(),
        strict=strict,
        out=out,
        name=name,
        force=force,
        fp16=Fp16Options(tuple(keep_fp32 or ()), strict_fp16) if fp16 else None,
        int8=None if not int8 else Int8Options() if int8_bar is None else Int8Options(int8_bar),
        engine=engine,
        images=images,
        max_images=max_images,
        labels=labels,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        input_size=None if input_size is None else input_size_from_text(input_size),
        input_format=input_format,
        input_name=input_name,
        output_name=output_name,
        task=None if task is None else _task(task),
    )
    result = export_checkpoint(options, ConsoleProgress())
    # A precision that missed its bar is not served unasked, and was warned of.
    passed = [v for v in result.manifest.verification if v.passed]
    worst = min(passed, key=lambda verification: verification.agreement)
    verified = {v.artifact for v in passed}
    right = [v for v in passed if v.accuracy is not None]
    accurate = f", {min(v.accuracy or 0.0 for v in right):.2%} right at least" if right else ""
    not_run = [a.path for a in result.manifest.artifacts if a.path not in verified]
    unproven = f"; NOT run here: {', '.join(not_run)}" if not_run else ""
    agreement = f"{worst.agreement_on} agreement with PyTorch at least {worst.agreement:.2%}"
    typer.echo(
        f"{result.folder}/ is complete: {len(verified)} artifacts verified, {agreement}{accurate}{unproven}; see "
        f"{result.folder}/report.html, serve it with: fuseline serve {result.folder}"
    )


def main() -> None:
    """Run `export` alone, the console script and `python -m export`."""
    run_command_line(app)


def _command_line() -> str:
    """Return what the user typed, quoted for a shell; `export` alone becomes `fuseline export`, as shells have their
    own `export`.
    """
    program, *arguments = sys.argv
    return shlex.join(["fuseline", *([] if Path(program).name == "fuseline" else ["export"]), *arguments])


def _task(text: str) -> "Task":
    match text:
        case "single-label" | "multi-label":
            return text
    raise InputError(f"--task {text!r}: single-label or multi-label was expected")


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{flag} {text!r}: numbers separated by commas were expected, such as 0.485,0.456,0.406"
        ) from error
