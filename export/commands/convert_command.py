"""`fuseline convert`."""

from pathlib import Path
from typing import Annotated

import typer

from fuseline.export.commands.flags import Assume, Ema, HeadFrom, HeadName, Naming, Rename, Take, network_source


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Whatever `fuseline export` takes.")],
    to: Annotated[str, typer.Option(metavar="NAME", help="Naming scheme to write; a wrong one lists them.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="What to write: .safetensors, .pt or .pth.")],
    ema: Ema = False,
    naming: Naming = None,
    rename: Rename = None,
    head_from: HeadFrom = None,
    head: HeadName = None,
    take: Take = None,
    assume: Assume = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Rename a checkpoint's tensors to another naming scheme, and prove it by running both.

    A hand-written ResNet-34 (`shortcut.0`, `shortcut.1`) to torchvision's resnet34, and back:

        fuseline convert resnet34.pt --to torchvision -o out.safetensors

        fuseline convert out.safetensors --to shortcut -o back.pt
    """
    # Here, so that --help and a wrong flag answer without the seconds that torch takes to import.
    from fuseline.export.conversion import convert_checkpoint

    source = network_source(
        checkpoint,
        ema=ema,
        naming=naming,
        head_from=head_from,
        head=head,
        take=take,
        factory=None,
        factory_arguments=None,
        rename=rename,
        assume=assume,
    )
    made = convert_checkpoint(source, to=to, out=out, force=force)
    typer.echo(
        f"{made.out}: {made.architecture}, {made.renamed} of {made.tensors} tensors renamed from {made.from_naming} to "
        f"{made.to_naming}"
    )
    for sentence in made.verified_against:
        typer.echo(f"  {sentence}")
    for sentence in made.left_out:
        typer.echo(f"  left out: {sentence}")
