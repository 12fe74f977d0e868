"""The plan's check for people and for JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from fuseline.benchmarks.plan.check import BAR, BUSY_CORES, MANY_REQUESTS, MOST_SECONDS, PlanCheck


def as_table(run: PlanCheck) -> Table:
    """A row for each load and percentile."""
    table = Table(title=f"{run.model}: predicted and measured latency on the same arrivals, ms")
    for column in ("servers", "load", "percentile", "measured", "predicted", "predicted / measured", "within"):
        table.add_column(column, justify="left" if column == "servers" else "right")
    for verdict in run.verdicts:
        table.add_row(
            f"{verdict.replicas}",
            f"{verdict.load:.0%}",
            f"p{verdict.percentile}",
            f"{verdict.measured_ms}",
            f"{verdict.predicted_ms}",
            f"{verdict.ratio:.2f}",
            f"{BAR:.0%}" if verdict.passed else f"FAILED: {BAR:.0%}",
        )
    for replicas, load in run.unjudged:
        table.add_row(f"{replicas}", f"{load:.0%}", "", "", "", "", "FAILED: other programs ran")
    disturbed = sum(map(len, run.rounds)) - sum(map(len, run.quiet))
    too_long = "FAILED: " if run.simulating_s > MOST_SECONDS else ""
    table.caption = (
        f"Medians and quartiles of {len(run.rounds)} rounds; {disturbed} of {sum(map(len, run.rounds))} loads don't "
        f"count, as other programs had over {BUSY_CORES:.0%} of the cores meanwhile. {MANY_REQUESTS:,} requests were "
        f"simulated on all cores in {run.simulating_s:.1f} s ({too_long}at most {MOST_SECONDS:g})"
    )
    return table


def as_json(run: PlanCheck) -> dict[str, Any]:
    """Every round, the verdicts, and what was predicted from, without its samples."""
    return {
        "model": run.model,
        "bar": BAR,
        "busy_share": BUSY_CORES,
        "passed": run.passed,
        "simulated_requests": MANY_REQUESTS,
        "simulating_s": run.simulating_s,
        "most_simulating_s": MOST_SECONDS,
        "verdicts": [asdict(verdict) | {"passed": verdict.passed} for verdict in run.verdicts],
        "unjudged": [{"replicas": replicas, "load": load} for replicas, load in run.unjudged],
        "rounds": [[asdict(each) | {"ratios": each.ratios} for each in found] for found in run.rounds],
        "profiles": {replicas: _summary(profile) for replicas, profile in run.profiles.items()},
    }


def _summary(profile: Any) -> dict[str, Any]:
    shown: dict[str, Any] = profile.model_dump(mode="json", exclude={"buckets", "alone"})
    for name in ("buckets", "alone"):
        shown[name] = [
            {"rows": b.rows, "batches": len(b.seconds), "median_seconds": b.median, "idle_ratio": b.idle_ratio}
            for b in getattr(profile, name)
        ]
    return shown
