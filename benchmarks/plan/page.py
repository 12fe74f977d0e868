"""A plan as one HTML page that needs no other file."""

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader

from fuseline.benchmarks.plan.charts import goodput_chart, latency_chart
from fuseline.benchmarks.plan.planning import Plan
from fuseline.benchmarks.plan.table import COLUMNS, answer, cases, cells, limits_of, notes, price_of
from fuseline.export.html_page import page_environment


def page_of(plan: Plan) -> str:
    """Return the page's HTML; the same for the same plan."""
    environment = page_environment().overlay(
        loader=ChoiceLoader([PackageLoader("fuseline.benchmarks.plan", "."), PackageLoader("fuseline.export", ".")])
    )
    figures = plan.figures
    tiles = [
        (f"{plan.replicas:,}", "replica" if plan.replicas == 1 else "replicas"),
        *((f"{value:,.3g} ms" if value is not None else "none", name) for name, value in figures.latency_ms.items()),
        (f"{figures.goodput_per_s:,.0f}/s", f"answered within {_within(plan):g} ms"),
        (f"{plan.pictures_per_s / plan.capacity_pictures_per_s:.0%}", "of capacity used"),
    ]
    return environment.get_template("plan.html.j2").render(
        plan=plan,
        answer=answer(plan),
        tiles=tiles,
        notes=list(notes(plan)),
        limits=limits_of(plan),
        costs=[
            (replicas, price_of(cost))
            for replicas, cost in ((plan.replicas, plan.cost), (plan.replicas + 1, plan.cost_of_one_more))
            if cost is not None
        ],
        columns=COLUMNS,
        rows=[(case, cells(each)) for case, each in cases(plan)],
        charts=[
            ("Latency against load", _drawn(latency_chart, plan)),
            ("Goodput against load", _drawn(goodput_chart, plan)),
        ],
    )


def _within(plan: Plan) -> float:
    return list(plan.asked.limits_ms.values())[-1]


def _drawn(draw: Callable[[Path, Plan], None], plan: Plan) -> str:
    """The chart as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        draw(path, plan)
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
