"""What the contenders of a case did, round by round, and whether its bars are met."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, MEASURES, Bar, Case


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one contender did under one load for a while."""

    requests_per_s: float
    """Requests answered a second; calls, of the bare backend."""
    images_per_s: float
    p50_ms: float | None
    """None of the CPU limit, as `p99_ms`."""
    p99_ms: float | None
    server_cpu_ms_per_request: float | None = None
    """CPU time of the server's process and its descendants; None of the bare backend."""
    generator_cpu_share: float | None = None
    """CPU seconds of the load generator for each second; near 1 it limits what is measured."""
    offered_per_s: float | None = None
    """Requests that were due each second; None in a closed loop."""
    decode_cpu_ms: float | None = None
    """The part of `server_cpu_ms_per_request` that decoding takes; of the CPU limit only."""

    def measured(self, measure: str) -> float:
        """`measure`, of `MEASURES`."""
        if measure == "images/s":
            return self.images_per_s
        if measure in ("p50", "p99"):
            latency_ms = self.p50_ms if measure == "p50" else self.p99_ms
            assert latency_ms is not None
            return latency_ms
        assert self.server_cpu_ms_per_request is not None
        images = self.images_per_s / self.requests_per_s
        return self.server_cpu_ms_per_request / (images if measure == "CPU an image" else 1)


@dataclass(slots=True)
class CaseRounds:
    """One case; lists have a value for each round."""

    name: str
    stretches: dict[str, list[Stretch]] = field(default_factory=dict)
    """Stretches of each contender that was measured."""
    capacity_per_s: list[float] = field(default_factory=list)
    """What Triton answered in a closed loop, where the case's rate is a share of it."""

    left_out: dict[str, str] = field(default_factory=dict)
    """Contender to why it can't run here; peers that aren't installed are no contenders."""

    @property
    def case(self) -> Case:
        """What was measured."""
        return CASES[self.name]

    def add(self, contender: str, stretch: Stretch) -> None:
        """Note what `contender` did in its latest round."""
        self.stretches.setdefault(contender, []).append(stretch)

    def measured(self, contender: str, measure: str) -> list[float]:
        """`measure`, of `MEASURES`, in each round; empty if the contender wasn't measured."""
        return [stretch.measured(measure) for stretch in self.stretches.get(contender, ())]

    def as_json(self) -> dict[str, Any]:
        """Every round."""
        return asdict(self) | {"case": asdict(self.case)}


class Rounds(Protocol):
    """`CaseRounds`, or what another kind of load has in its place."""

    name: str

    @property
    def case(self) -> Case:
        """What was measured."""
        ...

    def measured(self, contender: str, measure: str) -> list[float]:
        """`measure`, of `MEASURES`, in each round; empty if the contender wasn't measured."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Every round."""
        ...


@dataclass(frozen=True, slots=True)
class BarVerdict:
    """One bar, and what was measured of it."""

    case: str
    bar: Bar
    values: tuple[float, ...]
    """One for each round; empty: one of the two contenders wasn't there."""

    @property
    def spread(self) -> Spread | None:
        """None where nothing was measured."""
        return spread_of(self.values) if self.values else None

    @property
    def passed(self) -> bool | None:
        """Whether the median is within the bar; None where nothing was measured."""
        return None if self.spread is None else self.bar.passes(self.spread.median)

    @property
    def what(self) -> str:
        """What is held against the bar, in words."""
        return f"{CONTENDERS[self.bar.contender].title}: {MEASURES[self.bar.measure]}"


def verdicts(found: Sequence[Rounds]) -> list[BarVerdict]:
    """Every bar of every case, those too that could not be measured."""
    return [BarVerdict(each.name, bar, _values(each, bar)) for each in found for bar in each.case.bars]


def _values(rounds: Rounds, bar: Bar) -> tuple[float, ...]:
    needed = (bar.contender, bar.against) if bar.against else (bar.contender,)
    values, *others = (rounds.measured(name, bar.measure) for name in needed)
    if not values or not all(others):
        return ()
    if not others:
        return tuple(values)
    if bar.relation == "times":
        return pair_ratios(values, others[0])
    return tuple(value - other for value, other in zip(values, others[0], strict=True))


def as_json(found: Sequence[Rounds], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Every round, and every verdict."""
    return {
        "left_out": dict(left_out),
        "contenders": {name: asdict(contender) for name, contender in CONTENDERS.items()},
        "cases": [each.as_json() for each in found],
        "verdicts": [
            asdict(verdict)
            | {
                "what": verdict.what,
                "bar_is": verdict.bar.text,
                "spread": None if verdict.spread is None else asdict(verdict.spread),
                "passed": verdict.passed,
            }
            for verdict in verdicts(found)
        ],
    }
