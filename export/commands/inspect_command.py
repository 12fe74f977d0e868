"""`fuseline inspect FILE|PACKAGE`."""

import json
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
from fuseline.export.commands.output_file import check_output_file, write_output_file
from fuseline.export.facts.input_size import input_size_from_text
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import MANIFEST_NAME, load_package

if TYPE_CHECKING:
    from fuseline.export.inspection.inspected import Inspection
    from fuseline.export.inspection.package_inspection import InspectedPackage
    from fuseline.export.loading.loading import NetworkSource


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE|PACKAGE", help="A checkpoint or a model package.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write it as one page that works offline.")
    ] = None,
    filters: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw the first convolution's filters.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    input_size: InputSize = None,
    assume: Assume = None,
    ema: Ema = False,
    naming: Naming = None,
    rename: Rename = None,
    rename_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json|-",
            help="Only write the names that the tensors need, by shape and order where nothing else tells, for "
            "--rename; - prints them.",
        ),
    ] = None,
    head_from: HeadFrom = None,
    head: HeadName = None,
    take: Take = None,
    factory: Factory = None,
    factory_arguments: FactoryArguments = None,
) -> None:
    """Show what a checkpoint or a model package holds: layers, receptive fields, BatchNorm gains, risks in FP16."""
    if html is not None:
        check_output_file("--html", html, ".html")
    if filters is not None:
        check_output_file("--filters", filters, ".png")
    if rename_template is not None and str(rename_template) != "-":
        check_output_file("--rename-template", rename_template, ".json")
    size = None if input_size is None else input_size_from_text(input_size)
    if (path / MANIFEST_NAME).exists():
        given = {
            "--input-size": size,
            "--assume": assume,
            "--ema": ema,
            "--naming": naming,
            "--rename": rename,
            "--rename-template": rename_template,
            "--head-from": head_from,
            "--head": head,
            "--take": take,
            "--factory": factory,
            "--factory-arg": factory_arguments,
        }
        if wrong := [flag for flag, value in given.items() if value]:
            raise InputError(f"{', '.join(wrong)}: {path} is a model package, whose network and input size are fixed")
        _inspect_package(path, html=html, filters=filters, as_json=as_json)
        return

    # Here, so that --help and a wrong flag answer without the seconds that torch takes to import.
    source = network_source(
        path,
        ema=ema,
        naming=naming,
        head_from=head_from,
        head=head,
        take=take,
        factory=factory,
        factory_arguments=factory_arguments,
        assume=assume,
        rename=rename,
    )
    if rename_template is not None:
        if factory is not None:
            raise InputError("--rename-template is for networks that are recognised; --factory's own names are needed")
        _write_template(source, rename_template)
        return
    from fuseline.export.inspection.inspection_view import show_inspection
    from fuseline.export.inspection.network_inspection import inspect_source

    inspection = inspect_source(source, size)
    _write(inspection, None, html=html, filters=filters)
    show_inspection(inspection, as_json=as_json)


def _write_template(source: "NetworkSource", out: Path) -> None:
    from fuseline.export.loading.loading import rename_template_of

    template = rename_template_of(source)
    text = json.dumps(template, indent=2) + "\n"
    if str(out) == "-":
        typer.echo(text, nl=False)
        return
    write_output_file("--rename-template", out, text.encode())
    empty = sum(not name for name in template.values())
    typer.echo(
        f"{out}: {len(template)} tensors, {empty} of them without a name yet. Hold it against the code that trained "
        f"the network, correct it, and add --rename {out}"
    )


def _inspect_package(path: Path, *, html: Path | None, filters: Path | None, as_json: bool) -> None:
    from fuseline.export.inspection.inspection_view import show_package
    from fuseline.export.inspection.package_inspection import inspect_package

    found = inspect_package(load_package(path))
    if found.inspection is not None:
        _write(found.inspection, found, html=html, filters=filters)
    elif html is not None or filters is not None:
        show_package(found, as_json=as_json)
        raise InputError(f"--html and --filters need the network's layers: {found.why_no_layers}")
    show_package(found, as_json=as_json)


def _write(
    inspection: "Inspection", package: "InspectedPackage | None", *, html: Path | None, filters: Path | None
) -> None:
    if filters is not None:
        from fuseline.export.inspection.filters import filters_picture

        if inspection.filters is None:
            raise InputError(f"--filters: {inspection.file} has no convolution whose weights could be drawn")
        write_output_file("--filters", filters, filters_picture(inspection.filters.weight).png)
    if html is not None:
        from fuseline.export.inspection.inspection_page import inspection_page

        write_output_file("--html", html, inspection_page(inspection, package).encode("utf-8"))
