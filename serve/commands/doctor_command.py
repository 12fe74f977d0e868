"""`fuseline doctor [PACKAGE]`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseline.serve.errors import BackendUnavailableError

if TYPE_CHECKING:
    from fuseline.serve.doctor import Diagnosis


def doctor(
    package: Annotated[
        Path | None, typer.Argument(metavar="[PACKAGE]", help="What would serve this model package.")
    ] = None,
    precision: Annotated[str, typer.Option(help="As for `fuseline serve`.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show what this machine can serve with, what `--backend auto` would choose and why, and what would serve better.

    The exit code is 0, or 2 if nothing can serve.
    """
    from fuseline.serve.doctor import diagnose
    from fuseline.serve.model_package import load_package

    diagnosis = diagnose(None if package is None else load_package(package), precision=precision)
    typer.echo(json.dumps(diagnosis.as_json, indent=2) if as_json else "\n".join(_lines(diagnosis)))
    if diagnosis.choice is None:
        raise typer.Exit(BackendUnavailableError.exit_code)


def _lines(diagnosis: "Diagnosis") -> Iterator[str]:
    yield "Runtimes"
    for runtime in diagnosis.runtimes:
        found = f"{runtime.version} ({runtime.distribution})" if runtime.distribution else "not installed"
        cure = "" if runtime.distribution else f": {runtime.install}"
        yield f"  {runtime.name:<17} {found}{cure}"
    yield "GPU"
    driver = diagnosis.driver
    if driver is None:
        yield "  no NVIDIA driver is installed"
    else:
        yield f"  NVIDIA driver {driver.version or 'of unknown version'}, serves CUDA up to {driver.cuda}"
        for gpu in driver.gpus:
            yield f"  {gpu.name}, {gpu.capability}, {gpu.memory_bytes / 2**30:.0f} GiB"
        if driver.problem:
            yield f"  {driver.problem}"
    cpu = diagnosis.cpu
    yield "CPU"
    features = "its features can't be told here" if cpu.features is None else ", ".join(cpu.features) or "none known"
    yield f"  {cpu.model}, {cpu.usable} usable; {features}"
    yield f"--backend auto{f' for {diagnosis.package}' if diagnosis.package else ''}"
    for candidate in diagnosis.candidates:
        if candidate.reason is not None:
            yield f"  ✗ {candidate.title}: {candidate.reason}"
        elif candidate == diagnosis.choice:
            yield f"  ✓ {candidate.title} is chosen: {candidate.merit}"
            if diagnosis.precision is not None:
                yield f"    in {diagnosis.precision}"
        else:
            yield f"  · {candidate.title} could, and comes later"
    if diagnosis.choice is None:
        yield "  nothing here can serve"
    if diagnosis.advice:
        yield "For better"
        yield from (f"  {line}" for line in diagnosis.advice)
