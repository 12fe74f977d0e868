"""The output of an inspection on a terminal or in a pipe: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fuseline.export.inspection.inspected import DEAD_GAIN, BatchNormFacts, Inspection, Layer
from fuseline.export.inspection.inspection_text import (
    field_text,
    figure,
    fp16_risk_text,
    parameters_text,
    short_count,
    stride_text,
    tensors_text,
    window_text,
)
from fuseline.export.inspection.package_inspection import InspectedPackage
from fuseline.serve.model_package import AGREEMENT_ON, Manifest

_PIPE_WIDTH = 10_000
_WIDE = 132
"""Width of a console, in characters, in which every column fits beside names of usual length."""
_SHORTEST_NAME = 16
_GAP = 2
"""Number of characters between columns: rich's padding, and one for the line that its box leaves blank."""


def show_inspection(inspection: Inspection, *, as_json: bool, console: Console | None = None) -> None:
    """Print what a checkpoint holds."""
    if as_json:
        print(json.dumps(inspection.as_dict(), indent=2))  # noqa: T201
        return
    console = console or _console()
    _line(console, f"{inspection.file}: {inspection.architecture}, {inspection.classes} classes")
    _line(console, f"sha256 {inspection.sha256}")
    _show_network(console, inspection)


def show_package(found: InspectedPackage, *, as_json: bool, console: Console | None = None) -> None:
    """Print a package's manifest, whether its files are the exported ones, and its network.

    Raises:
        PackageError: a file differs from the manifest; raised after everything was printed.
    """
    manifest = found.manifest
    if as_json:
        inspection = None if found.inspection is None else found.inspection.as_dict()
        plain = {"manifest": manifest.model_dump(mode="json"), "damage": found.damage, "inspection": inspection}
        print(json.dumps(plain, indent=2))  # noqa: T201
    else:
        console = console or _console()
        size = manifest.input
        _line(
            console,
            f"{manifest.name} {manifest.version}: {manifest.architecture}, {manifest.described_classes}, input "
            f"{' x '.join(map(str, size.row_shape))} {size.dtype}",
        )
        _line(console, tensors_text(manifest))
        for assumption in manifest.assumptions:
            settled = f"{assumption.key}={assumption.value}: {assumption.meaning}; told by {assumption.settled_by}"
            _line(console, assumption.line if assumption.is_open else settled)
        _show_files(console, manifest, found.damage)
        if found.inspection is not None:
            _show_network(console, found.inspection)
        elif found.why_no_layers is not None:
            _line(console, found.why_no_layers)
    found.check_intact()


def printable(text: str) -> str:
    """Return `text` with control characters as escapes, as names come from files that anyone may have made."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_network(console: Console, inspection: Inspection) -> None:
    for heading, sentences in (("", inspection.evidence), ("not told: ", inspection.unseen), ("", inspection.notes)):
        for sentence in sentences:
            _line(console, f"{heading}{sentence}")
    _print_table(console, *_layer_rows(inspection.layers, wide=_is_wide(console)))
    channels, height, width = inspection.input_shape
    _line(console, parameters_text(inspection))
    _line(
        console,
        f"{short_count(inspection.multiply_adds)} multiply-adds for one picture of {channels} x {height} x {width}",
    )
    _show_batchnorms(console, inspection)
    _show_fp16(console, inspection)


def _layer_rows(layers: Sequence[Layer], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    if wide:
        headings = ["layer~", "kind", "kernel", "stride", "output", "parameters>", "multiply-adds>", "field>", "covers"]
    else:
        headings = ["layer~", "kind, kernel /stride", "output", "params>", "mul-adds>", "field>", "covers"]
    rows = []
    for layer in layers:
        output = " x ".join(map(str, layer.output_shape))
        covers = "yes" if layer.covers_input else "no"
        window, stride = window_text(layer), stride_text(layer)
        if wide:
            counts = [f"{layer.parameters:,}", f"{layer.multiply_adds:,}"]
            rows.append([layer.name, layer.kind, window, stride, output, *counts, field_text(layer), covers])
        else:
            window = window.replace("dilation ", "d").replace("groups ", "g") + (f" /{stride}" if stride else "")
            counts = [short_count(layer.parameters), short_count(layer.multiply_adds)]
            rows.append([layer.name, f"{layer.kind} {window}", output, *counts, field_text(layer), covers])
    return headings, rows


def _show_batchnorms(console: Console, inspection: Inspection) -> None:
    if inspection.batchnorms:
        dropped_first = ("channels", "beta", "gamma", "mean", "variance")
        _print_table(console, *_batchnorm_rows(inspection.batchnorms), dropped_first=dropped_first)
        _line(
            console,
            f"gain is |gamma / sqrt(variance + eps)|: smallest, median, largest; a channel is dead below {DEAD_GAIN:g}",
        )
        for facts in inspection.batchnorms:
            if facts.why_not is not None:
                _line(console, f"{facts.name} folds into no layer: {facts.why_not}")
    if inspection.applied_folds:
        rows = [[fold.convolution, fold.batchnorm, figure(fold.largest_gain)] for fold in inspection.applied_folds]
        _print_table(console, ["folded into~", "BatchNorm~", "largest gain>"], rows)


def _batchnorm_rows(facts: Sequence[BatchNormFacts]) -> tuple[list[str], list[list[str]]]:
    headings = ["BatchNorm~", "channels>", "mean>", "variance>", "gamma>", "beta>", "gain>", "dead>", "folds into~"]
    rows = []
    for norm in facts:
        ranges = (
            "" if r is None else f"{figure(r.smallest)} .. {figure(r.largest)}"
            for r in (norm.running_mean, norm.running_variance, norm.gamma, norm.beta)
        )
        gain = "  ".join(figure(value) for value in (norm.gain.smallest, norm.gain.median, norm.gain.largest))
        dead, into = str(norm.dead_channels or ""), norm.folds_into or "none"
        rows.append([norm.name, str(norm.channels), *ranges, gain, dead, into])
    return headings, rows


def _show_fp16(console: Console, inspection: Inspection) -> None:
    look = inspection.fp16
    headings = ["in FP16~", "largest weight>", "subnormal>", "to zero>", "largest output>", "margin>"]
    rows = []
    for facts in look.layers:
        margin = "" if facts.activation_margin is None else f"{facts.activation_margin:,.0f} x"
        shares = (_share(facts.subnormal_share), _share(facts.zero_share))
        weight, output = _figure_or_none(facts.largest_weight), _figure_or_none(facts.largest_activation)
        rows.append([facts.layer, weight, *shares, output, margin])
    _print_table(console, headings, rows)
    _line(console, "weights are those with their BatchNorm folded in; FP16 ends at 65504 and is normal from 2**-14 on")
    if look.images is not None:
        _line(console, f"outputs are those on generated images only: {look.images}")
    if look.why_no_images is not None:
        _line(console, f"outputs were not looked at: {look.why_no_images}")
    if look.largest_value_at is not None and look.largest_value is not None:
        _line(console, f"the largest value of all is {figure(look.largest_value)}, at {look.largest_value_at}")
    risks = [f"{facts.layer}: {risk}" for facts in look.layers for risk in facts.risks]
    _line(console, f"{fp16_risk_text(inspection)} in FP16")
    for risk in risks:
        _line(console, risk)


def _show_files(console: Console, manifest: Manifest, damage: dict[str, str | None]) -> None:
    rows = []
    for artifact in manifest.artifacts:
        intact = "yes" if damage[artifact.path] is None else "NO"
        rows.append([artifact.path, artifact.format, artifact.precision, f"{artifact.bytes / 2**20:.1f}", intact])
    _print_table(console, ["file", "format", "precision", "MiB>", "intact"], rows)
    agreed = f"{AGREEMENT_ON[manifest.task]} agreement>"
    headings = ["verified", "run by", "images>", agreed, "largest difference>", "kept its bar"]
    has_accuracy = any(check.accuracy is not None for check in manifest.verification)
    rows = []
    for check in manifest.verification:
        figures = str(check.images), f"{check.agreement:.2%}", f"{check.max_abs_difference:.3g}"
        accuracies = (_share_or_none(check.accuracy), _share_or_none(check.eager_accuracy)) if has_accuracy else ()
        rows.append([check.artifact, check.backend, *figures, "yes" if check.passed else "NO", *accuracies])
    _print_table(console, [*headings, *(("accuracy>", "PyTorch's>") if has_accuracy else ())], rows)


def _share_or_none(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _figure_or_none(value: float | None) -> str:
    return "" if value is None else figure(value)


def _share(value: float | None) -> str:
    if value is None or value == 0:
        return "" if value is None else "0"
    return "<0.1%" if value < 0.001 else f"{value:.1%}"


def _print_table(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], dropped_first: Sequence[str] = ()
) -> None:
    """Print a table no wider than the console.

    On a narrow console, columns are dropped in the order of `dropped_first`; then names are shortened, as little as
    possible.

    Args:
        headings: headings of the columns; `>` at the end aligns the column to the right, `~` says that it has names.
    """
    columns = [[heading, *map(printable, cells)] for heading, *cells in zip(headings, *rows, strict=True)]
    for name in dropped_first:
        if _width(columns) > console.width:
            columns = [column for column in columns if column[0].rstrip(">~") != name]
    names = [column for column in columns if column[0].endswith("~")]
    room = console.width - _width(columns) + sum(max(map(len, column)) for column in names)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), show_edge=False, pad_edge=False)
    for column in columns:
        heading = column[0]
        if heading.endswith("~"):
            column[1:] = (shortened(cell, max(_SHORTEST_NAME, room // len(names))) for cell in column[1:])
        table.add_column(heading.rstrip(">~"), justify="right" if heading.endswith(">") else "left", no_wrap=True)
    for cells in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    console.print()
    console.print(table)


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + _GAP for column in columns)


def shortened(name: str, room: int) -> str:
    """Return `name` in at most `room` characters, by leaving out its beginning."""
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)))


def _is_wide(console: Console) -> bool:
    return console.width >= _WIDE


def _console() -> Console:
    # In a pipe rich assumes 80 columns, which would cut the names of layers.
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
