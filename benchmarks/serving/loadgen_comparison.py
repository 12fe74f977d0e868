"""`fuseline bench loadgen`: MLPerf LoadGen and our own load generator on one server, turn by turn in one run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of
from fuseline.benchmarks.harness.timing import BURN_IN_S
from fuseline.benchmarks.load.target import Target
from fuseline.benchmarks.serving.figures import OpenFigures, ServingFigures
from fuseline.benchmarks.serving.loadgen import LoadGenFigures, LoadGenPlan, run_loadgen
from fuseline.benchmarks.serving.measure import measure_open, measure_serving

Ours = ServingFigures | OpenFigures

_COMPARED = {
    "SingleStream": ("samples/s", "p50 ms", "p90 ms"),
    "Offline": ("samples/s",),
    "Server": ("p50 ms", "p90 ms", "p99 ms"),
}


@dataclass(slots=True)
class ScenarioRounds:
    """One scenario. Lists have a value for each round."""

    scenario: str
    load: str
    """How many requests, or how often, for people."""
    theirs: list[LoadGenFigures] = field(default_factory=list)
    ours: list[Ours] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Agreement:
    """One quantity as both measured it."""

    scenario: str
    quantity: str
    theirs: Spread
    ours: Spread
    ratio: Spread
    """Ours to LoadGen's, within each round."""


def compare_with_loadgen(
    target: Target,
    scenarios: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    rate_per_s: float,
    concurrency: int,
    deadline_s: float = 0.1,
    burn_in_s: float = BURN_IN_S,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[ScenarioRounds, ...]:
    """Measure `target` in each of `scenarios` by both, `rounds` times; every second round goes backwards.

    Args:
        target: as `connect` gave it; unary calls of one image.
        scenarios: of `fuseline.benchmarks.serving.loadgen.SCENARIOS`.
        rounds: how often each measures.
        seconds: length of each stretch.
        rate_per_s: of Server, against our open loop.
        concurrency: of Offline, against our closed loop; SingleStream's is 1.
        deadline_s: latency that LoadGen's verdict on Server is about.
        burn_in_s: before each stretch.
        seed: of the first round's arrivals; each round has its own.
        say: told what is measured.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: a request failed.
    """
    found = tuple(
        ScenarioRounds(scenario, f"{rate_per_s:g}/s" if scenario == "Server" else f"{_callers(scenario, concurrency)}")
        for scenario in scenarios
    )
    # How many samples Offline needs for `seconds`.
    capacity = {
        each.scenario: measure_serving(target, concurrency=concurrency, seconds=seconds, burn_in_s=burn_in_s)
        for each in found
        if each.scenario == "Offline"
    }
    for number in range(rounds):
        for each in found if number % 2 == 0 else found[::-1]:
            rate = capacity[each.scenario].requests_per_s if each.scenario in capacity else rate_per_s
            callers = _callers(each.scenario, concurrency)
            plan = LoadGenPlan(each.scenario, seconds, rate, callers, deadline_s, burn_in_s, seed + number)
            for who in ("LoadGen", "ours") if number % 2 == 0 else ("ours", "LoadGen"):
                say(f"round {number + 1} of {rounds}, {each.scenario}: {who}")
                if who == "ours":
                    each.ours.append(_measure_ours(target, plan))
                else:
                    each.theirs.append(run_loadgen(target, plan))
    return found


def agreements(found: Sequence[ScenarioRounds]) -> tuple[Agreement, ...]:
    """Every quantity that both measure."""
    rows = []
    for each in found:
        for quantity in _COMPARED[each.scenario]:
            theirs = [_quantity(quantity, figures.samples_per_s, figures.latency_ms) for figures in each.theirs]
            ours = [_quantity(quantity, figures.images_per_s, figures.latency_ms) for figures in each.ours]
            ratios = pair_ratios(ours, theirs)
            rows.append(Agreement(each.scenario, quantity, spread_of(theirs), spread_of(ours), spread_of(ratios)))
    return tuple(rows)


def as_json(target: Target, found: Sequence[ScenarioRounds]) -> dict[str, Any]:
    """Everything that both measured."""
    model = target.model
    return {
        "server": {"model": model.name, "backend": model.backend, "precision": model.precision},
        "scenarios": [asdict(each) for each in found],
        "agreements": [asdict(each) for each in agreements(found)],
    }


def as_table(target: Target, found: Sequence[ScenarioRounds]) -> Table:
    """Medians (quartiles) of the rounds, side by side."""
    rounds = len(found[0].ours)
    table = Table(title=f"{target.model.name} on {target.model.backend}: median (quartiles) of {rounds} rounds")
    for heading in ("scenario", "load", "quantity"):
        table.add_column(heading)
    for heading in ("LoadGen", "ours", "ours / LoadGen"):
        table.add_column(heading, justify="right")
    loads = {each.scenario: each.load for each in found}
    previous = None
    for row in agreements(found):
        if previous not in (None, row.scenario):
            table.add_section()
        is_first, previous = row.scenario != previous, row.scenario
        table.add_row(
            row.scenario if is_first else "",
            loads[row.scenario] if is_first else "",
            row.quantity,
            f"{row.theirs}",
            f"{row.ours}",
            f"{row.ratio:.3f}",
        )
    return table


def _callers(scenario: str, concurrency: int) -> int:
    return concurrency if scenario == "Offline" else 1


def _quantity(quantity: str, samples_per_s: float, latency_ms: dict[str, float]) -> float:
    return samples_per_s if quantity == "samples/s" else latency_ms[quantity.removesuffix(" ms")]


def _measure_ours(target: Target, plan: LoadGenPlan) -> Ours:
    settings: dict[str, Any] = {"seconds": plan.seconds, "burn_in_s": plan.burn_in_s}
    if plan.scenario == "Server":
        return measure_open(target, rate_per_s=plan.rate_per_s, seed=plan.seed, deadline_s=plan.deadline_s, **settings)
    return measure_serving(target, concurrency=plan.concurrency, **settings)
