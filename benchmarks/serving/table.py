"""The figures of `fuseline.benchmarks.serving.measure` for people and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fuseline.benchmarks.load.target import Target
from fuseline.benchmarks.serving.figures import OpenFigures, ServingFigures


def as_json(
    target: Target, figures: Sequence[ServingFigures], open_figures: Sequence[OpenFigures] = ()
) -> dict[str, Any]:
    """Everything measured; `generator_was_busy` and `was_sent_late` say where it may have been the generator."""
    model = target.model
    served = {
        "model": model.name,
        "architecture": model.architecture,
        "backend": model.backend,
        "precision": model.precision,
        "input": [model.height, model.width, model.channels],
        "protocol": target.protocol.name,
    }
    return {
        "server": served,
        "closed_loop": [_point(each) for each in figures],
        "open_loop": [_point(each) | {"was_sent_late": each.was_sent_late} for each in open_figures],
    }


def as_table(target: Target, figures: Sequence[ServingFigures], open_figures: Sequence[OpenFigures] = ()) -> Table:
    """A row for each concurrency, then one for each rate."""
    model = target.model
    every: list[ServingFigures | OpenFigures] = [*figures, *open_figures]
    with_goodput = any(each.goodput_per_s is not None for each in every)
    with_batches = any(each.batches is not None for each in every)
    table = Table(
        title=f"{model.name} on {model.backend} {model.precision}, {model.height} x {model.width} raw pixels, "
        f"{target.protocol.name}"
    )
    headings = ["load", "requests/s", "images/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"]
    headings += ["goodput/s"] if with_goodput else []
    headings += ["rows/batch"] if with_batches else []
    headings += ["server CPU ms", "generator CPU", *(["sent late, p99 ms"] if open_figures else []), "errors"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in every:
        cells = [each.load, f"{each.requests_per_s:.1f}", f"{each.images_per_s:.1f}"]
        cells += [f"{each.latency_ms[name]:.2f}" for name in ("p50", "p90", "p99", "p999")]
        cells += [_cell(each.goodput_per_s, ".1f")] if with_goodput else []
        cells += [_cell(None if each.batches is None else each.batches.mean_rows, ".1f")] if with_batches else []
        cells += [_cell(each.server_cpu_ms_per_request, ".2f"), f"{each.generator_cpu_share:.0%}"]
        cells += [f"{each.send_lag_ms['p99']:.2f}" if isinstance(each, OpenFigures) else ""] if open_figures else []
        cells += [", ".join(f"{number} {status}" for status, number in each.errors.items()) or "0"]
        table.add_row(*cells)
    table.caption = "\n".join(_warnings(every, open_figures))
    table.caption_justify = "left"
    return table


def _point(figures: ServingFigures | OpenFigures) -> dict[str, Any]:
    mean_rows = {} if figures.batches is None else {"mean_rows_per_batch": figures.batches.mean_rows}
    return asdict(figures) | mean_rows | {"generator_was_busy": figures.generator_was_busy}


def _cell(value: float | None, spec: str) -> str:
    return "?" if value is None else format(value, spec)


def _warnings(every: Sequence[ServingFigures | OpenFigures], open_figures: Sequence[OpenFigures]) -> list[str]:
    warnings = []
    if any(each.generator_was_busy for each in every):
        warnings.append("the load generator was nearly busy and may be the limit: give it more --processes")
    if late := [each for each in open_figures if each.was_sent_late]:
        rates = ", ".join(f"{each.rate_per_s:g}" for each in late)
        warnings.append(
            f"at {rates}/s over a tenth of the p99 latency is the generator's own: it sent late; give it more "
            "--processes or cores of its own"
        )
    return warnings
