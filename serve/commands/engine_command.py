"""`fuseline engine PACKAGE`: TensorRT engines for a model package, built ahead of time."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fuseline.serve.batching.policy import DEFAULT_MAX_BATCH
from fuseline.serve.errors import InputError
from fuseline.serve.precision import GPU_CHOICES, PRECISIONS, listed

_AUTO, *_NAMED = GPU_CHOICES
_PRECISION_HELP = f"{_AUTO} ({PRECISIONS[_NAMED[0]].title} if the package has it), {listed(_NAMED)}."


def engine(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="A model package that `fuseline export` wrote.")],
    capabilities: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="smNN,…",
            help="Compute capabilities to build for, without a GPU; default: that of the GPU here. For a GPU here that "
            "TensorRT for RTX doesn't list: current or portable tries.",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help=_PRECISION_HELP)] = "auto",
    max_batch: Annotated[
        int, typer.Option(min=1, max=4096, help="Largest batch, in images, as in `serve`.")
    ] = DEFAULT_MAX_BATCH,
) -> None:
    """Build TensorRT engines and add them to a model package.

    An engine holds for one compute capability and one build of TensorRT. One that is there already and fits is kept.
    """
    from fuseline.serve.backends.engine.display import show_build
    from fuseline.serve.backends.engine.target import available_builder
    from fuseline.serve.package_engines import add_engine

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

    def say(text: str) -> None:
        typer.echo(text, err=True)

    targets = _capabilities(capabilities)
    # Every capability is checked before minutes go into the first.
    for capability in targets:
        available_builder(capability)
    for capability in targets:
        title = f"building an engine for {capability or 'the GPU here'}"
        added = add_engine(
            package,
            capability=capability,
            precision=precision,
            max_batch=max_batch,
            show_progress=partial(show_build, title, say),
            on_wait=_waiting(package, say),
        )
        typer.echo(added.described)


def _capabilities(text: str | None) -> list[str | None]:
    """Return `sm89,sm120` as a list without doubles; [None], for the GPU here, if `text` is None."""
    if text is None:
        return [None]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"--for {text!r}: compute capabilities separated by commas were expected, such as sm89,sm120")
    return list(dict.fromkeys(names))


def _waiting(package: Path, say: Callable[[str], None]) -> Callable[[], None]:
    return lambda: say(f"another process is writing to {package}; waiting for it")
