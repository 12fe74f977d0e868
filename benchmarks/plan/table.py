"""A plan on the terminal: the answer in one line, then what it rests on."""

from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from fuseline.benchmarks.plan.cost import Cost
from fuseline.benchmarks.plan.fleet import Figures
from fuseline.benchmarks.plan.planning import Plan
from fuseline.benchmarks.plan.profile import Profile

_FAR_APART = 5.0
COLUMNS = ("requests/s", "p50", "p99", "goodput/s", "good", "refused", "late", "busy", "pictures a batch")
"""What is told of every case."""


def as_text(plan: Plan) -> Iterator[RenderableType]:
    """What is printed."""
    yield answer(plan)
    yield from notes(plan)
    yield ""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for case, figures in cases(plan):
        table.add_row(case, *cells(figures))
    yield table
    yield ""
    yield plan.serve_command
    yield plan.manifest_command


def answer(plan: Plan) -> str:
    """Return the plan as one line."""
    figures = plan.figures
    parts = [
        f"{plan.replicas:,} {'replica' if plan.replicas == 1 else 'replicas'}",
        plan.flags or "the default settings",
        f"p50 {milliseconds(figures.latency_ms['p50'])}, p99 {milliseconds(figures.latency_ms['p99'])}",
        f"goodput {figures.goodput_per_s:,.0f}/s",
        f"{plan.pictures_per_s / plan.capacity_pictures_per_s:.0%} of capacity",
        *([price_of(plan.cost)] if plan.cost else []),
    ]
    return "; ".join(parts)


def price_of(cost: Cost) -> str:
    """Return a cost in one line."""
    return f"{cost.hour:,.2f} an hour, {cost.month:,.0f} a month, {cost.million_pictures:,.3g} a million pictures"


def notes(plan: Plan) -> Iterator[str]:
    """What else is to be known of the answer."""
    asked, profile = plan.asked, plan.profile
    yield f"asked for: {asked.arrivals}; {limits_of(plan)}, also with {asked.headroom:.0%} more load"
    yield (
        f"measured: {profile.model} in {profile.precision} on {profile.backend}, {profile.machine}, "
        f"{profile.measured:%Y-%m-%d}: at most {plan.replica_pictures_per_s:,.0f} pictures/s a replica, "
        f"{plan.capacity_pictures_per_s:,.0f} together, of which {plan.pictures_per_s:,.0f} come"
    )
    yield (
        f"beside the engines, all replicas together: {plan.front_end_cores:,.1f} of "
        f"{plan.replicas * profile.cores:,} cores for requests and pictures, "
        f"{plan.network_gbit_per_s:,.2f} Gbit/s of requests, "
        f"{plan.replicas * profile.memory_bytes / 1e9:,.1f} GB of memory"
    )
    if (scatter := _scatter(profile)) is not None:
        slow, usual = scatter
        yield (
            f"one in 100 batches took more than {milliseconds(1000 * slow)}, half of them at most "
            f"{milliseconds(1000 * usual)}: was the machine busy with other work when it was measured?"
        )
    if plan.step > 1:
        yield f"the fewest replicas lie within {plan.step} of that"
    if plan.lost is None:
        yield "without its only replica nothing is answered; a second one takes its place"
    elif plan.lost_of_one_more is not None and plan.lost_of_one_more.is_kept and not plan.lost.is_kept:
        yield f"to keep the targets without one replica, run {plan.replicas + 1:,}" + (
            f": {price_of(plan.cost_of_one_more)}" if plan.cost_of_one_more else ""
        )


def _scatter(profile: Profile) -> tuple[float, float] | None:
    """Seconds of slow batches and of usual ones, where they lie far apart: 99th percentile and median of the size with
    the most samples.
    """
    seconds = max((bucket.seconds for bucket in profile.buckets), key=len)
    slow, usual = np.quantile(seconds, 0.99), np.median(seconds)
    return (float(slow), float(usual)) if len(seconds) >= 100 and slow > _FAR_APART * usual else None


def limits_of(plan: Plan) -> str:
    """Return the targets in words."""
    told = ", ".join(f"{name} within {limit:g} ms" for name, limit in plan.asked.limits_ms.items())
    return told + (f", deadlines of {plan.asked.deadline_ms:g} ms" if plan.asked.deadline_ms else "")


def cases(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """What was simulated, and what came of it."""
    yield "as asked for", plan.figures
    for row in plan.by_load:
        yield f"{row.part_of_capacity:g} of capacity", row.figures
    yield f"a burst: {plan.burst.times:g}x for {plan.burst.seconds:g} s", plan.burst.figures
    for lost in (plan.lost, plan.lost_of_one_more):
        if lost is not None:
            yield f"{lost.replicas:,} replicas, then one lost", lost.figures


def cells(figures: Figures) -> tuple[str, ...]:
    """Return the text for each of `COLUMNS`."""
    return (
        f"{figures.rate_per_s:,.5g}" if figures.rate_per_s < 1000 else f"{figures.rate_per_s:,.0f}",
        milliseconds(figures.latency_ms["p50"]),
        milliseconds(figures.latency_ms["p99"]),
        f"{figures.goodput_per_s:,.5g}" if figures.goodput_per_s < 1000 else f"{figures.goodput_per_s:,.0f}",
        f"{figures.good_share:.2%}",
        f"{figures.refused_share:.2%}",
        f"{figures.late_share:.2%}",
        f"{figures.busy_share:.0%}",
        f"{figures.batch_rows:.1f}",
    )


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three digits."""
    if value is None:
        return "no answer"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
