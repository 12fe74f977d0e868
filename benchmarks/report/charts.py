"""The report's charts, each as a PNG file, or as its name ends. One colour for each contender, units on every axis."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fuseline.benchmarks.harness.latency_histogram import decoded
from fuseline.benchmarks.harness.stats import Spread
from fuseline.benchmarks.report.results import EnginesResult, OpenPoint, Point, ServeResult

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours of Okabe and Ito, which colour-blind people tell apart, in an order that keeps neighbours apart."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#30343b",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#565c66",
    "ytick.color": "#565c66",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.dpi": 160,
}
_WIDTH = 8.6
"""Inches, of every chart, so that letters have one size on the page."""
_SIDE_STEP = 1.012
"""Ratio of the places of two contenders at one load, on a logarithmic axis."""
_BASELINE, _BEST_PYTORCH = "#8a8f98", "#3f444d"
_NINES = (0, 50, 90, 99, 99.9, 99.99)


def latency_chart(path: Path, results: Sequence[ServeResult], labels: Sequence[str]) -> None:
    """p50 and p99 against the offered load, of open loops. Hollow: the generator itself was late or busy."""
    with chart(path) as axes:
        for colour, result in zip(_colours(len(results)), results, strict=True):
            points = sorted(result.open_loop, key=lambda point: point.rate_per_s)
            rates = [point.rate_per_s for point in points]
            for name, dashes in (("p50", "-"), ("p99", (0, (4, 2)))):
                values = [point.latency_ms[name] for point in points]
                axes.plot(rates, values, color=colour, linestyle=dashes)
                for rate, value, point in zip(rates, values, points, strict=True):
                    axes.plot(rate, value, "o", color=colour, markerfacecolor="white" if _doubtful(point) else colour)
            if result.deadline_ms is not None:
                axes.axhline(result.deadline_ms, color="#8a8f98", linewidth=1, linestyle=":")
        millisecond_axis(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("offered load, requests/s (Poisson arrivals)")
        axes.set_ylabel("latency from when a request was due, ms")
        handles = [Line2D([], [], color=c, label=label) for c, label in zip(_colours(len(labels)), labels, strict=True)]
        handles += [Line2D([], [], color="#565c66", label="p50")]
        handles += [Line2D([], [], color="#565c66", linestyle=(0, (4, 2)), label="p99")]
        if any(result.deadline_ms is not None for result in results):
            handles += [Line2D([], [], color="#8a8f98", linewidth=1, linestyle=":", label="deadline")]
        if any(_doubtful(point) for result in results for point in result.open_loop):
            handles += [_hollow("generator late or busy")]
        legend(axes, handles)


def percentile_chart(path: Path, result: ServeResult) -> None:
    """Latency by percentile of each rate, on an axis of nines."""
    with chart(path) as axes:
        points = sorted(result.open_loop, key=lambda point: point.rate_per_s)
        shades = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(points)))
        for colour, point in zip(shades, points, strict=True):
            histogram = decoded(point.latency_histogram)
            # Beyond 1 in n nothing is known of n requests.
            last = 100 - 100 / max(2, histogram.get_total_count())
            percentiles = 100 - np.geomspace(100, 100 - last, 60)
            values = [histogram.get_value_at_percentile(p) / 1e3 for p in percentiles]
            axes.step(100 / (100 - percentiles), values, where="post", color=colour, label=point.load)
        axes.set_xscale("log")
        largest = max(decoded(point.latency_histogram).get_total_count() for point in points)
        ticks = [percentile for percentile in _NINES if 100 / (100 - percentile) <= largest]
        axes.set_xticks([100 / (100 - p) for p in ticks], [f"{p:g} %" for p in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        millisecond_axis(axes)
        axes.set_xlabel("share of requests that were at least as fast")
        axes.set_ylabel("latency from when a request was due, ms")
        axes.legend(title="offered load", alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5))


def throughput_chart(path: Path, results: Sequence[ServeResult], labels: Sequence[str]) -> None:
    """Images a second against concurrency, of closed loops."""
    with chart(path) as axes:
        for colour, label, result in zip(_colours(len(results)), labels, results, strict=True):
            points = sorted(result.closed_loop, key=lambda point: point.concurrency)
            concurrencies = [point.concurrency for point in points]
            axes.plot(concurrencies, [point.images_per_s for point in points], color=colour, label=label)
            for point in points:
                face = "white" if _doubtful(point) else colour
                axes.plot(point.concurrency, point.images_per_s, "o", color=colour, markerfacecolor=face)
        every = sorted({point.concurrency for result in results for point in result.closed_loop})
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(concurrency) for concurrency in every])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("concurrency, requests under way")
        axes.set_ylabel("throughput, images/s")
        handles = axes.get_legend_handles_labels()[0]
        if any(_doubtful(point) for result in results for point in result.closed_loop):
            handles = [*handles, _hollow("generator busy")]
        legend(axes, handles)


def batches_chart(path: Path, result: ServeResult) -> None:
    """Draw what share of each load's batches had how many rows, and how many they had on average."""
    points: list[Point] = [
        point for point in (*result.closed_loop, *result.open_loop) if point.batches and point.batches.batches
    ]
    spans = sorted({(fewest, most) for point in points if point.batches for fewest, most, _ in point.batches.by_rows})
    shades = dict(zip(spans, mpl.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(spans))), strict=True))
    with chart(path, height=0.9 + 0.36 * len(points)) as axes:
        for position, point in enumerate(points):
            assert point.batches is not None
            left = 0.0
            for fewest, most, count in point.batches.by_rows:
                share = 100 * count / point.batches.batches
                axes.barh(position, share, left=left, height=0.66, color=shades[fewest, most], linewidth=0)
                left += share
            mean = point.batches.rows / point.batches.batches
            axes.text(101.5, position, f"{mean:.1f}", va="center", color="#30343b")
        axes.text(101.5, -0.62, "mean", va="bottom", color="#565c66")
        axes.set_yticks(range(len(points)), [point.load for point in points])  # type: ignore[attr-defined]
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        axes.set_xlabel("share of the batches, %")
        patches = [Line2D([], [], color=shades[span], linewidth=7, label=_span(*span)) for span in spans]
        axes.legend(
            handles=patches, title="rows of the batch", alignment="left", loc="center left", bbox_to_anchor=(1.07, 0.5)
        )


def overload_chart(path: Path, curves: Mapping[str, Mapping[float, Spread]], deadline_ms: float) -> None:
    """Goodput against offered load, both in multiples of each contender's own capacity.

    `curves`: title to load to goodput; medians are joined, quartiles are whiskers.
    """
    with chart(path) as axes:
        loads = sorted({load for curve in curves.values() for load in curve})
        ideal = [(load, min(load, 1.0)) for load in sorted({*loads, 1.0})]
        axes.plot(
            *zip(*ideal, strict=True), color="#8a8f98", linewidth=1, linestyle=":", label="offered, up to capacity"
        )
        for number, (colour, (title, curve)) in enumerate(zip(_colours(len(curves)), curves.items(), strict=True)):
            spreads = [curve[load] for load in loads]
            medians = [spread.median for spread in spreads]
            whiskers = [
                [spread.median - spread.lower_quartile for spread in spreads],
                [spread.upper_quartile - spread.median for spread in spreads],
            ]
            # Side by side, or the whiskers of contenders that do alike would hide each other.
            places = [load * _SIDE_STEP ** (number - (len(curves) - 1) / 2) for load in loads]
            axes.errorbar(
                places,
                medians,
                whiskers,
                color=colour,
                marker="o",
                elinewidth=1.1,
                capsize=2,
                clip_on=False,
                label=title,
            )
        axes.set_xscale("log")
        axes.set_xticks(loads, [f"{load:g}" for load in loads])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("offered load, multiples of the contender's own capacity (Poisson arrivals)")
        axes.set_ylabel(f"goodput within {deadline_ms:g} ms / own capacity")
        legend(axes, axes.get_legend_handles_labels()[0])


def engines_chart(path: Path, result: EnginesResult) -> None:
    """Images a second of each engine at each batch size: medians, with quartiles as lines. Dark: the best PyTorch."""
    batches = sorted({engine.batch for engine in result.engines})
    titles = list(dict.fromkeys(engine.title for engine in result.engines))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.95 + 0.33 * len(titles)), layout="constrained")
        panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            for engine in result.engines:
                if engine.batch != batch:
                    continue
                position, rate = titles.index(engine.title), engine.images_per_s_spread
                is_best_pytorch = engine.candidate == result.best_pytorch.get(batch)
                is_baseline = engine.candidate == result.baseline
                colour = _BEST_PYTORCH if is_best_pytorch else _BASELINE if is_baseline else COLOURS[0]
                axes.barh(position, rate.median, height=0.62, color=colour)
                axes.plot(
                    [rate.lower_quartile, rate.upper_quartile], [position] * 2, color="#1b1e23", linewidth=1.1, zorder=3
                )
                text = f"{rate.median:,.0f}" if rate.median >= 100 else f"{rate.median:.3g}"
                edge = max(rate.median, rate.upper_quartile)
                axes.annotate(text, (edge, position), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
            axes.set_title(f"batch {batch}")
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.28)
            axes.tick_params(left=False)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.set_xlabel("images/s")
        panels[0].set_yticks(range(len(titles)), titles)
        panels[0].invert_yaxis()
        figure.savefig(path)


@contextmanager
def chart(path: Path, height: float = 3.7) -> Iterator[Axes]:
    """Yield axes in the report's style; what was drawn is then written to `path`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        yield axes
        figure.savefig(path)


def _colours(number: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(number)]


def _doubtful(point: Point) -> bool:
    return point.generator_was_busy or (isinstance(point, OpenPoint) and point.was_sent_late)


def millisecond_axis(axes: Axes) -> None:
    """Make the vertical axis one of milliseconds, logarithmic."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """Put a legend beside the axes."""
    axes.legend(handles=list(handles), loc="center left", bbox_to_anchor=(1.01, 0.5))


def _hollow(label: str) -> Line2D:
    return Line2D([], [], color="#565c66", marker="o", markerfacecolor="white", linestyle="none", label=label)


def _span(fewest: int, most: int) -> str:
    return str(fewest) if fewest == most else f"{fewest} to {most}"
