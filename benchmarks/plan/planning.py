"""A plan: the fewest replicas, their settings, and what becomes of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fuseline.benchmarks.plan.cost import Cost, cost_of
from fuseline.benchmarks.plan.fleet import Figures, Fleet
from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.scenarios import (
    PARTS_OF_CAPACITY,
    WHAT_IF_BURST,
    AtLoad,
    InBurst,
    Lost,
    at_load,
    fitting_queues,
    in_burst,
    without_one,
)
from fuseline.benchmarks.plan.search import Search, flags_of
from fuseline.benchmarks.plan.side_by_side import Run, one_after_another
from fuseline.benchmarks.plan.simulation import ServingOptions

_SEEDS = (0, 1, 2)
"""Those of the figures at the load that was asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as far as the page repeats it."""

    package: str
    """The package, as it was named."""
    arrivals: str
    """The arrivals, in words."""
    limits_ms: dict[str, float]
    deadline_ms: float | None
    headroom: float
    price: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    asked: Asked
    profile: Profile
    rate_per_s: float
    """Requests a second in the long run."""
    pictures_per_s: float
    replicas: int
    step: int
    """The fewest replicas are more than `replicas - step`."""
    options: ServingOptions
    replica_pictures_per_s: float
    """Most pictures a second of one replica."""
    figures: Figures
    by_load: tuple[AtLoad, ...]
    burst: InBurst
    lost: Lost | None
    lost_of_one_more: Lost | None
    cost: Cost | None
    cost_of_one_more: Cost | None
    front_end_cores: float
    """Cores of all machines together that gRPC, HTTP and decoding keep busy."""
    network_gbit_per_s: float
    """What the requests take of the network, both ways together being hardly more."""

    @property
    def flags(self) -> str:
        """Flags of `fuseline serve` that the plan leads to; empty: its defaults."""
        return flags_of(self.options)

    @property
    def capacity_pictures_per_s(self) -> float:
        """Most pictures a second of all replicas."""
        return self.replicas * self.replica_pictures_per_s

    @property
    def serve_command(self) -> str:
        return f"fuseline serve {self.asked.package}{' ' * bool(self.flags)}{self.flags}"

    @property
    def manifest_command(self) -> str:
        return f"fuseline manifest kubernetes {self.asked.package} --replicas {self.replicas}"

    def as_json(self) -> dict[str, Any]:
        """Everything but the profile's samples."""
        told = {"buckets", "alone"}
        return {
            **{name: value for name, value in asdict(self).items() if name != "profile"},
            "profile": self.profile.model_dump(mode="json", exclude=told),
            "capacity_pictures_per_s": self.capacity_pictures_per_s,
            "serve_command": self.serve_command,
            "manifest_command": self.manifest_command,
        }


def plan_for(
    fleet: Fleet,
    asked: Asked,
    *,
    burst: tuple[float, float] = WHAT_IF_BURST,
    most_replicas: int = 100_000,
    tell: Callable[[str], None] = lambda _: None,
    run: Run[Any] = one_after_another,
) -> Plan:
    """Return the plan for `fleet`; `burst` is the one that is shown, and `run` makes simulations of what is shown.

    Raises:
        PlanError: no number of replicas meets the targets.
    """
    search = Search(fleet, asked.headroom, most_replicas, tell)
    found = search.fewest()
    replicas = found.replicas
    tell("overload")
    queues = fitting_queues(fleet, replicas, found.options)
    options = next((each for each in queues if search.meets(replicas, each)), found.options)
    tell("the loads that are shown")
    # Told once here, so that it isn't simulated in each process.
    capacity = fleet.capacity(options)
    figures, in_a_burst, lost, lost_of_one_more, *by_load = run(
        [
            partial(fleet.figures, replicas, options, seeds=_SEEDS),
            partial(in_burst, fleet, replicas, options, *burst),
            partial(without_one, fleet, replicas, options),
            partial(without_one, fleet, replicas + 1, options),
            *(partial(at_load, fleet, replicas, options, part) for part in PARTS_OF_CAPACITY),
        ]
    )
    load = fleet.load
    megabytes = load.pictures_per_s * fleet.profile.front_end.request_mb
    costs = [
        None if asked.price is None else cost_of(number, asked.price, load.pictures_per_s)
        for number in (replicas, replicas + 1)
    ]
    return Plan(
        asked=asked,
        profile=fleet.profile,
        rate_per_s=load.rate_per_s,
        pictures_per_s=load.pictures_per_s,
        replicas=replicas,
        step=found.step,
        options=options,
        replica_pictures_per_s=capacity,
        figures=figures,
        by_load=tuple(by_load),
        burst=in_a_burst,
        lost=lost,
        lost_of_one_more=lost_of_one_more,
        cost=costs[0],
        cost_of_one_more=costs[1],
        front_end_cores=load.rate_per_s * fleet.cpu_seconds(load.pictures_per_s / load.rate_per_s),
        network_gbit_per_s=megabytes * 8 / 1000,
    )
