"""A closed loop on simulated servers: what they answer when there is always more to do."""

import numpy as np

from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.virtual_server import ServingOptions, VirtualServer
from fuseline.benchmarks.plan.virtual_time import Event, World
from fuseline.serve.balancing.choice import MORE_THAN_BEGUN, less_loaded_of_two

_BURN_IN_SHARE = 0.2


def closed_loop_rate(
    profile: Profile,
    callers: int,
    *,
    requests: int = 2000,
    replicas: int = 1,
    options: ServingOptions = ServingOptions(),  # noqa: B008 it is frozen
    seed: int = 0,
) -> float:
    """Return the requests/s that `callers` get who each ask for one row again when they have an answer.

    Counted are all but the first of so many `requests`, which fill the queue.
    """
    return _ClosedLoop(profile, callers, requests, replicas, options, seed).rate()


class _ClosedLoop:
    def __init__(
        self, profile: Profile, callers: int, requests: int, replicas: int, options: ServingOptions, seed: int
    ) -> None:
        self._world = World()
        self._random = np.random.default_rng(seed)
        self._callers = callers
        self._requests = requests
        self._transport = profile.front_end.transport_seconds
        self._loads = [0] * replicas
        self._index: dict[int, int] = {}
        self._sent = 0
        self._ends: list[float] = []
        self._servers = [
            VirtualServer(self._world, profile, options, self._random.spawn(1)[0], self._answer)
            for _ in range(replicas)
        ]

    def rate(self) -> float:
        for _ in range(self._callers):
            self._world.at(0.0, Event(None, self._send, (), False))
        self._world.run()
        ends = np.sort(self._ends)
        first = int(_BURN_IN_SHARE * len(ends))
        # Those under way at the end have less company than the others.
        last = max(first + 1, len(ends) - self._callers)
        return float((last - first) / (ends[last - 1] - ends[first - 1])) if first else 0.0

    def _send(self) -> None:
        if self._sent >= self._requests:
            return
        number = self._sent
        self._sent += 1
        index = self._index[number] = less_loaded_of_two(self._loads, self._random.random)
        self._loads[index] += MORE_THAN_BEGUN + 1
        self._servers[index].send(number, 1, None, self._refuse)

    def _answer(self, answers: list[tuple[int, float]]) -> None:
        for number, at in answers:
            self._ends.append(at)
            # Callers that all took equally long would go in step for ever.
            way = self._transport * 2 * self._random.random()
            self._world.at(at + way, Event(None, self._again, (number,), False))

    def _again(self, number: int) -> None:
        self._loads[self._index.pop(number)] -= MORE_THAN_BEGUN
        self._send()

    def _refuse(self, number: int, is_late: bool) -> None:  # noqa: ARG002 there are no deadlines here
        self._world.at(self._world.now + 0.01, Event(None, self._again, (number,), False))
