"""`fuseline bench report`: result files become one self-contained HTML page, and PNGs of its charts."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from fuseline.benchmarks.engines.contenders import TITLES
from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.report.charts import (
    batches_chart,
    engines_chart,
    latency_chart,
    overload_chart,
    percentile_chart,
    throughput_chart,
)
from fuseline.benchmarks.report.results import (
    EnginesResult,
    LoadGenResult,
    PeersResult,
    Result,
    ServeResult,
    labels_of,
    read_results,
)
from fuseline.export.html_page import page_environment
from fuseline.serve.errors import InputError

PAGE_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the page."""

    file_name: str
    title: str
    note: str
    """What to read from it, or what it leaves out."""
    data_uri: str


def write_report(paths: Sequence[Path], out: Path) -> tuple[Path, ...]:
    """Make `out / report.html` and the PNGs that it shows from the result files `paths`; return what was written.

    The page needs no other file. Older files of the same names are replaced; others in `out` are left alone.

    Raises:
        InputError: a file is no result that can be drawn, or `out` can't be written.
    """
    results = read_results(paths)
    try:
        out.mkdir(parents=True, exist_ok=True)
        charts = [_drawn(out, *planned) for planned in _plan(results)]
        page = _environment().get_template("report.html.j2").render(_facts(results) | {"charts": charts})
        (out / PAGE_NAME).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out} can't be written: {error.strerror}") from error
    return (out / PAGE_NAME, *(out / chart.file_name for chart in charts))


_Planned = tuple[str, str, str, Callable[[Path], None]]


def _plan(results: Sequence[Result]) -> list[_Planned]:
    """(file name, title, note, what draws it) of each chart for which there are figures."""
    served = [result for result in results if isinstance(result, ServeResult)]
    opened = [result for result in served if result.open_loop]
    closed = [result for result in served if result.closed_loop]
    labels = dict(zip(map(id, served), labels_of(served), strict=True))
    planned: list[_Planned] = []
    if opened:
        planned.append(
            (
                "latency.png",
                "Latency against offered load",
                "Requests come as a Poisson process at the offered rate, whatever the server does. Latency counts from "
                "when a request was due, so those that wait for a stall all count.",
                partial(latency_chart, results=opened, labels=[labels[id(result)] for result in opened]),
            )
        )
    if closed:
        planned.append(
            (
                "throughput.png",
                "Throughput against concurrency",
                "So many requests are under way all the time: the next one is sent when one is answered.",
                partial(throughput_chart, results=closed, labels=[labels[id(result)] for result in closed]),
            )
        )
    for result in opened:
        if all(point.latency_histogram for point in result.open_loop):
            name = f"percentiles-{result.file}.png"
            note = "Each curve ends where the number of its requests ends what is known."
            title = f"Latency by percentile: {labels[id(result)]}"
            planned.append((name, title, note, partial(percentile_chart, result=result)))
    for result in served:
        if any(point.batches and point.batches.batches for point in (*result.closed_loop, *result.open_loop)):
            name, title = f"batches-{result.file}.png", f"Batch sizes: {labels[id(result)]}"
            note = "Counted by the server, before padding."
            planned.append((name, title, note, partial(batches_chart, result=result)))
    for compared in results:
        if isinstance(compared, EnginesResult):
            name, title = f"engines-{compared.file}.png", f"Engines: {compared.model}"
            repeats = compared.engines[0].images_per_s_spread.repeats
            note = (
                f"Medians of {repeats} repeats, taken in turns; the thin line spans the quartiles. "
                f"Grey: {TITLES.get(compared.baseline, compared.baseline)}, the baseline."
                f"{' Dark: the best PyTorch at that batch size.' if compared.best_pytorch else ''}"
            )
            planned.append((name, title, note, partial(engines_chart, result=compared)))
        if isinstance(compared, PeersResult):
            case = compared.overload.case
            note = (
                f"Goodput: requests answered within {case.deadline_ms:g} ms of when they were due. Capacity: what the "
                "contender itself answered in a closed loop just before. Medians of the rounds; whiskers span the "
                "quartiles."
            )
            draw = partial(overload_chart, curves=compared.curves(), deadline_ms=case.deadline_ms)
            planned.append((f"overload-{compared.file}.png", "Goodput under overload", note, draw))
    return planned


def _drawn(out: Path, file_name: str, title: str, note: str, draw: Callable[[Path], None]) -> Chart:
    path = out / file_name
    draw(path)
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return Chart(file_name, title, note, f"data:image/png;base64,{encoded}")


def _facts(results: Sequence[Result]) -> dict[str, Any]:
    served = [result for result in results if isinstance(result, ServeResult)]
    return {
        "served": list(zip(labels_of(served), served, strict=True)),
        "engines": [result for result in results if isinstance(result, EnginesResult)],
        "loadgen": [result for result in results if isinstance(result, LoadGenResult)],
        "titles": TITLES,
        "machines": list(dict.fromkeys(describe(result.machine) for result in results)),
        "commands": list(results),
        "models": list(dict.fromkeys(_model(result) for result in results)),
    }


def _model(result: Result) -> str:
    if isinstance(result, PeersResult):
        return result.overload.case.network
    return result.model if isinstance(result, EnginesResult) else result.server.model


def _environment() -> Environment:
    return page_environment().overlay(
        loader=ChoiceLoader([PackageLoader("fuseline.benchmarks.report", "."), PackageLoader("fuseline.export", ".")])
    )
