"""The flags that several commands share: where the network comes from, and how it is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fuseline.export.loading.loading import NetworkSource

Ema = Annotated[bool, typer.Option("--ema", help="Take the averaged (EMA) weights that lie beside the plain ones.")]
Naming = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The naming scheme of the tensors, where several fit; a wrong one lists them."),
]
Rename = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="Give tensors other names first: a JSON object of whole names, or of regular expressions in their order, "
        "to what they become. `inspect --rename-template` writes one to fill in.",
    ),
]
HeadFrom = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A checkpoint with the classifier, for a backbone without one.")
]
HeadName = Annotated[
    str | None,
    typer.Option("--head", metavar="NAME", help="The classifier's name, where several linear layers could be it."),
]
Take = Annotated[
    str | None,
    typer.Option(metavar="KEY|PREFIX", help="Where in the file the weights are, if it holds several: `teacher`."),
]
Factory = Annotated[
    str | None,
    typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Build the network by this function of yours; runs its code."),
]
FactoryArguments = Annotated[
    list[str] | None,
    typer.Option("--factory-arg", metavar="NAME=VALUE", help="An argument of --factory; may come several times."),
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Say what no tensor tells, such as shortcut=zeros-after or normalization=cifar10; what is assumed is "
        "printed with its key and values. May come several times.",
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        help="Pixels; default: what the checkpoint, its module or --images tell, else what is customary, and said.",
    ),
]


def network_source(
    checkpoint: Path,
    *,
    ema: bool,
    naming: str | None,
    head_from: Path | None,
    factory: str | None,
    factory_arguments: Sequence[str] | None,
    assume: Sequence[str] | None = None,
    rename: Path | None = None,
    head: str | None = None,
    take: str | None = None,
) -> "NetworkSource":
    """Return the flags as one `NetworkSource`. Raise `InputError` for an argument that isn't NAME=VALUE."""
    # Here, so that --help and a wrong flag answer without the seconds that torch takes to import.
    from fuseline.export.assumptions.assumptions import assumed_from_texts
    from fuseline.export.loading.loading import NetworkSource, factory_arguments_from_texts

    return NetworkSource(
        checkpoint=checkpoint,
        ema=ema,
        naming=naming,
        head_from=head_from,
        head=head,
        take=take,
        factory=factory,
        factory_arguments=factory_arguments_from_texts(factory_arguments or ()),
        assumed=assumed_from_texts(assume or ()),
        rename=rename,
    )
