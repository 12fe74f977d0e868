"""How inspections are shown: tables for people, JSON for programs, both on stdout."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from serve.errors import PackageError
from serve.model_package import ModelPackage, PackageFile

if TYPE_CHECKING:
    from export.inspection import Inspection


def show_checkpoint(inspection: "Inspection", *, as_json: bool) -> None:
    """Print what a checkpoint holds."""
    if as_json:
        print(json.dumps(asdict(inspection) | {"multiply_adds": inspection.multiply_adds}, indent=2))  # noqa: T201
        return
    table = Table("layer", "kind", "kernel", "stride", "output")
    for heading in ("parameters", "multiply-adds"):
        table.add_column(heading, justify="right")
    for layer in inspection.layers:
        kernel = "x".join(map(str, layer.kernel)) + (f" /{layer.groups}" if layer.groups > 1 else "")
        output = " x ".join(map(str, layer.output_shape))
        figures = f"{layer.parameters:,}", f"{layer.multiply_adds:,}"
        table.add_row(layer.name, layer.kind, kernel, str(layer.stride), output, *figures)
    console = _console()
    channels, height, width = inspection.input_shape
    console.print(f"{inspection.file}: {inspection.architecture}, {inspection.classes} classes", markup=False)
    console.print(f"sha256 {inspection.sha256}", markup=False)
    for note in inspection.notes:
        console.print(note, markup=False)
    console.print(table)
    console.print(
        f"{inspection.parameters:,} parameters, {inspection.multiply_adds / 1e9:.2f} G multiply-adds "
        f"for one image of {channels} x {height} x {width}"
    )


def show_package(package: ModelPackage, *, as_json: bool) -> None:
    """Print a package's manifest, and whether its files are the ones that were exported.

    Raises:
        PackageError: a file differs from the manifest; printed after everything else.
    """
    manifest = package.manifest
    damage = {file.path: _damage(package, file) for file in (*manifest.artifacts, manifest.reference)}
    if as_json:
        print(json.dumps({"manifest": manifest.model_dump(mode="json"), "damage": damage}, indent=2))  # noqa: T201
    else:
        console = _console()
        size = manifest.input
        console.print(
            f"{manifest.name} {manifest.version}: {manifest.architecture}, {manifest.classes} classes, input "
            f"{size.height} x {size.width} x {size.channels} {size.dtype}",
            markup=False,
        )
        files = Table("file", "format", "precision", "MiB", "intact")
        for artifact in manifest.artifacts:
            intact = "yes" if damage[artifact.path] is None else "NO"
            files.add_row(artifact.path, artifact.format, artifact.precision, f"{artifact.bytes / 2**20:.1f}", intact)
        console.print(files)
        checks = Table("verified", "run by", "images", "top-1 agreement", "largest difference", "kept its bar")
        for check in manifest.verification:
            agreement, difference = f"{check.top1_agreement:.2%}", f"{check.max_abs_difference:.3g}"
            kept = "yes" if check.passed else "NO"
            checks.add_row(check.artifact, check.backend, str(check.images), agreement, difference, kept)
        console.print(checks)
    if found := [text for text in damage.values() if text is not None]:
        raise PackageError("; ".join(found))


def _console() -> Console:
    # In a pipe rich assumes 80 columns, which would cut the names of layers.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _damage(package: ModelPackage, file: PackageFile) -> str | None:
    try:
        package.checked_path(file)
    except PackageError as error:
        return str(error)
    return None
