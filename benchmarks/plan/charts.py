"""A plan's charts, in the style of the report's."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from fuseline.benchmarks.plan.planning import Plan
from fuseline.benchmarks.report.charts import COLOURS, chart, legend, millisecond_axis

_GREY = "#565c66"


def latency_chart(path: Path, plan: Plan) -> None:
    """p50 and p99 against load; where requests are never answered a curve ends."""
    with chart(path) as axes:
        for name, colour in (("p50", COLOURS[0]), ("p99", COLOURS[1])):
            told = [(row.figures.rate_per_s, value) for row in plan.by_load if (value := row.figures.latency_ms[name])]
            axes.plot(*zip(*told, strict=True), color=colour, marker="o")
        for limit in plan.asked.limits_ms.values():
            axes.axhline(limit, color="#8a8f98", linewidth=1, linestyle=":")
        _planned(axes, plan)
        millisecond_axis(axes)
        axes.set_ylabel("latency, ms")
        handles = [
            Line2D([], [], color=colour, label=name) for name, colour in zip(("p50", "p99"), COLOURS, strict=False)
        ]
        handles += [Line2D([], [], color="#8a8f98", linewidth=1, linestyle=":", label="asked for")]
        legend(axes, [*handles, *_handles()])


def goodput_chart(path: Path, plan: Plan) -> None:
    """Goodput against load."""
    with chart(path) as axes:
        rates = [row.figures.rate_per_s for row in plan.by_load]
        axes.plot([0, *rates], [0, *rates], color="#8a8f98", linewidth=1, linestyle=":", label="all that come")
        axes.plot(
            rates, [row.figures.goodput_per_s for row in plan.by_load], color=COLOURS[0], marker="o", label="goodput"
        )
        _planned(axes, plan)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.set_ylabel("answered in time, requests/s")
        legend(axes, [*axes.get_legend_handles_labels()[0], *_handles()])


def _planned(axes: Axes, plan: Plan) -> None:
    rows = plan.pictures_per_s / plan.rate_per_s
    axes.axvline(plan.rate_per_s, color=COLOURS[2], linewidth=1.2)
    axes.axvline(plan.capacity_pictures_per_s / rows, color=_GREY, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_xlabel(f"load of {plan.replicas:,} {'replica' if plan.replicas == 1 else 'replicas'}, requests/s")


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color=COLOURS[2], linewidth=1.2, label="the load planned for"),
        Line2D([], [], color=_GREY, linewidth=1.2, linestyle=(0, (4, 2)), label="capacity"),
    ]
