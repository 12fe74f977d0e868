"""What the contenders did under multiples of their own capacity, round by round: the goodput that they kept."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.benchmarks.load.closed_loop import ClosedResult
from fuseline.benchmarks.load.http_calls import CONNECTION_LOST
from fuseline.benchmarks.load.open_loop import NOT_SENT, OpenResult
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, OverloadCase, goodput_at

REFUSALS = frozenset(
    {
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
        "CANCELLED",
        "HTTP_408",
        "HTTP_429",
        "HTTP_503",
        CONNECTION_LOST,
        NOT_SENT,
    }
)
"""How a server says that it has too much to do, or that the deadline has passed. Any other error ends the run."""


@dataclass(frozen=True, slots=True)
class OverloadStretch:
    """What one contender did under one load for a while."""

    load: float
    """Multiple of the capacity."""
    capacity_per_s: float
    """Requests answered a second in a closed loop without a deadline, just before."""
    capacity_errors: dict[str, int]
    """Status to how often a request of that closed loop was refused."""
    offered_per_s: float
    goodput_per_s: float
    """Requests answered within the deadline, from when they were due."""
    answered_per_s: float
    """However late."""
    due: int
    """Requests of the window; each was answered or refused."""
    refused: dict[str, float]
    """Status to its share of the requests that were due."""
    p50_ms: float | None
    """Latency of those answered, from when they were due; None if none was."""
    p99_ms: float | None
    send_lag_p99_ms: float
    """How late the generator itself was; part of the latency."""
    generator_cpu_share: float
    """CPU seconds of the load generator for each second; near 1 it limits what is measured."""

    @property
    def goodput_of_capacity(self) -> float:
        """Goodput as a share of the capacity."""
        return self.goodput_per_s / self.capacity_per_s


@dataclass(frozen=True, slots=True)
class OverloadRound:
    """One contender in one round."""

    stretches: tuple[OverloadStretch, ...]
    """One for each load of the case."""
    checked_answers: int
    """Kept of all these loops to be checked."""
    wrong_answers: int
    """Among them. Only of a peer: a wrong answer of Fuseline's ends the run."""

    def goodput_of_capacity(self, load: float) -> float:
        """Goodput as a share of the capacity, in the stretch under `load`."""
        return next(each.goodput_of_capacity for each in self.stretches if each.load == load)


@dataclass(slots=True)
class OverloadRounds:
    """The case; lists have a value for each round."""

    name: str
    rounds: dict[str, list[OverloadRound]] = field(default_factory=dict)
    """Rounds of each contender that was measured."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Contender to why it can't run here; peers that aren't installed are no contenders."""

    @property
    def case(self) -> OverloadCase:
        """What was measured."""
        case = CASES[self.name]
        assert isinstance(case, OverloadCase)
        return case

    def add(self, contender: str, measured: OverloadRound) -> None:
        """Note what `contender` did in its latest round."""
        self.rounds.setdefault(contender, []).append(measured)

    def measured(self, contender: str, measure: str) -> list[float]:
        """`measure`, of `goodput_at`, in each round; empty if the contender wasn't measured."""
        load = next(load for load in self.case.loads if goodput_at(load) == measure)
        return [each.goodput_of_capacity(load) for each in self.rounds.get(contender, ())]

    def curves(self) -> dict[str, dict[float, Spread]]:
        """Title of each contender to load to goodput as a share of its capacity."""
        return {
            CONTENDERS[name].title: {
                load: spread_of([each.goodput_of_capacity(load) for each in rounds]) for load in self.case.loads
            }
            for name, rounds in self.rounds.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Every round; each stretch with its goodput as a share of the capacity."""
        rounds = {
            name: [
                asdict(each)
                | {
                    "stretches": [
                        asdict(stretch) | {"goodput_of_capacity": stretch.goodput_of_capacity}
                        for stretch in each.stretches
                    ]
                }
                for each in listed
            ]
            for name, listed in self.rounds.items()
        }
        return asdict(self) | {"rounds": rounds, "case": asdict(self.case)}


def overload_stretch(capacity: ClosedResult, result: OpenResult, *, load: float, deadline_ms: float) -> OverloadStretch:
    """What `result`, of an open loop at `load` times what `capacity` says, amounts to."""
    answered_ms = 1e3 * result.answered_latency_s
    p50_ms, p99_ms = np.quantile(answered_ms, (0.5, 0.99)).tolist() if len(answered_ms) else (None, None)
    return OverloadStretch(
        load=load,
        capacity_per_s=capacity.requests_per_s,
        capacity_errors=dict(capacity.errors),
        offered_per_s=load * capacity.requests_per_s,
        goodput_per_s=int((answered_ms <= deadline_ms).sum()) / result.window_s,
        answered_per_s=result.answered / result.window_s,
        due=result.due,
        refused={status: number / result.due for status, number in result.window_errors.items()},
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        send_lag_p99_ms=1e3 * float(np.quantile(result.send_lag_s, 0.99)),
        generator_cpu_share=result.generator_cpu_share,
    )
