"""Simulates servers under load, on a measured profile: Fuseline's own batcher runs, on virtual time.

Nothing of the batcher is written again here: its policy, its admission and its lanes are those that serve. What is
simulated is how long a batch takes, what a request costs the event loop, and who sends what to which server.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.virtual_server import ServingOptions, VirtualServer, policy_of
from fuseline.benchmarks.plan.virtual_time import Event, Stream, World
from fuseline.serve.balancing.choice import MORE_THAN_BEGUN, less_loaded_of_two
from fuseline.serve.errors import InputError

__all__ = ["Arrivals", "Loss", "Outcome", "ServingOptions", "simulate"]

MOST_REPLICAS = 10_000


@dataclass(frozen=True)
class Arrivals:
    """When requests come, and how large they are."""

    seconds: NDArray[np.float64]
    """Shape (requests,): when each is sent, from the start, ascending."""
    rows: NDArray[np.int32]
    """Shape (requests,): number of rows of each."""


@dataclass(frozen=True)
class Loss:
    """A replica that ends without a word. Its requests under way are sent again, to others, at once."""

    at_s: float
    replica: int
    back_s: float | None = None
    """Seconds after which one that was just started is in its place; None: none is."""


@dataclass(frozen=True)
class Outcome:
    """What became of the requests; each is answered, refused or late, and one of these only."""

    latency_s: NDArray[np.float64]
    """Shape (requests,): seconds from each request's sending to its answer; NaN: it has none."""
    refused: NDArray[np.bool_]
    """Shape (requests,): whether it was refused at once: too much was ahead of it, or there was no replica."""
    late: NDArray[np.bool_]
    """Shape (requests,): whether its deadline passed, or was sure to, before it was answered."""
    replica: NDArray[np.int16]
    """Shape (requests,): index of the replica that it was sent to last; -1: there was none."""
    busy_share: NDArray[np.float64]
    """Shape (replicas,): share of the lanes' time for which they computed."""
    batches: NDArray[np.int64]
    """Shape (replicas,): number of batches."""
    batch_rows: NDArray[np.float64]
    """Shape (replicas,): rows of a batch on average, before padding; 0 where there was none."""
    seconds: float
    """Seconds from the start until the last request was done with."""

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Shape (requests,): whether it was answered in time."""
        return ~np.isnan(self.latency_s)


def simulate(
    profile: Profile,
    arrivals: Arrivals,
    *,
    replicas: int = 1,
    options: ServingOptions = ServingOptions(),  # noqa: B008 it is frozen
    deadline_s: float | None = None,
    losses: Sequence[Loss] = (),
    clients: int = 1,
    seed: int = 0,
) -> Outcome:
    """Simulate `replicas` servers of `profile`, and return what becomes of `arrivals`.

    Requests come from `clients`, at random; each of these knows of its own requests only, and sends one to the less
    loaded of two random replicas. `deadline_s` is sent with each request, and its client waits no longer. The same
    arguments give the same outcome.

    Raises:
        InputError: the arrivals or the losses break a rule, or the profile can't tell about the options.
    """
    _check(arrivals, replicas, deadline_s, losses, clients)
    run = _Run(profile, arrivals, replicas, options, deadline_s, losses, clients, seed)
    # A million requests are nothing that a collector could free.
    collects = gc.isenabled()
    gc.disable()
    try:
        return run.outcome()
    finally:
        if collects:
            gc.enable()


class _Run:
    """One simulation."""

    def __init__(
        self,
        profile: Profile,
        arrivals: Arrivals,
        replicas: int,
        options: ServingOptions,
        deadline_s: float | None,
        losses: Sequence[Loss],
        clients: int,
        seed: int,
    ) -> None:
        self._profile, self._options = profile, options
        self._lane_count = policy_of(profile, options).lanes
        self._world = World()
        self._random = np.random.default_rng(seed)
        self._at: list[float] = arrivals.seconds.tolist()
        self._rows: list[int] = arrivals.rows.tolist()
        self._count = count = len(self._at)
        self._deadline_s = deadline_s
        self._transport = profile.front_end.transport_seconds
        self._latency = [math.nan] * count
        self._refused, self._late = bytearray(count), bytearray(count)
        self._replica = [-1] * count
        # Those that are done with, whatever became of them.
        self._done = bytearray(count)
        self._client = self._random.integers(0, clients, count).tolist() if clients > 1 else None
        # Of each replica as each client sees it; see `less_loaded_of_two`.
        self._loads = [[0] * replicas for _ in range(clients)]
        self._servers = [self._new_server(index) for index in range(replicas)]
        self._lost: set[int] = set()
        # Which requests are at each replica; only needed where one may be lost.
        self._at_replica: list[set[int]] | None = [set() for _ in range(replicas)] if losses else None
        self._losses = losses
        self._balances = replicas > 1 or bool(losses)
        self._ended = [(0, 0, 0.0)] * replicas
        self._last = 0.0
        self._ahead = 0.0

    def outcome(self) -> Outcome:
        """Run, and return what became of all."""
        world = self._world
        for loss in self._losses:
            world.at(loss.at_s, Event(None, self._lose, (loss,), False))
        # A request is dealt with when an idle event loop has taken it up.
        self._ahead = self._servers[0].usual_work
        streams = [Stream([at + self._ahead for at in self._at], self._arrive)]
        if self._deadline_s is not None:
            # When a client waits no longer, as its server sees it.
            patience = max(0.0, self._deadline_s - self._transport / 2)
            streams.append(Stream([at + patience for at in self._at], self._expire))
        world.run(streams)
        for index in range(len(self._servers)):
            self._close_books(index)
        batches, rows, busy = (np.array(column) for column in zip(*self._ended, strict=True))
        lane_seconds = self._lane_count * max(self._last, 1e-12)
        return Outcome(
            latency_s=np.array(self._latency),
            refused=np.frombuffer(self._refused, np.bool_),
            late=np.frombuffer(self._late, np.bool_),
            replica=np.array(self._replica, np.int16),
            busy_share=busy / lane_seconds,
            batches=batches.astype(np.int64),
            batch_rows=rows / np.maximum(batches, 1),
            seconds=self._last,
        )

    def _new_server(self, index: int) -> VirtualServer:
        def answer(answers: list[tuple[int, float]]) -> None:
            for number, at in answers:
                latency = at - self._at[number] + self._transport
                # `_expire` tells of those that come too late.
                if not self._done[number] and (self._deadline_s is None or latency <= self._deadline_s):
                    self._latency[number] = latency
                    self._done[number] = 1
            last = max(at for _, at in answers)
            self._last = max(self._last, last)
            if self._balances:
                # Until then they count as under way, and the server may be lost.
                numbers = [number for number, _ in answers]
                self._world.at(last, Event(server.loop, self._leave, (numbers, index), True))

        server = VirtualServer(self._world, self._profile, self._options, self._random.spawn(1)[0], answer)
        return server

    def _arrive(self, number: int) -> None:
        self._send(number, self._ahead)

    def _send(self, number: int, came_before: float = 0.0) -> None:
        servers = self._servers
        if len(servers) == 1 and not self._lost:
            index = 0
        elif len(self._lost) == len(servers):
            self._refuse_without_replica(number)
            return
        else:
            index = self._chosen(number)
        self._replica[number] = index
        if self._balances:
            self._loads[0 if self._client is None else self._client[number]][index] += MORE_THAN_BEGUN + 1
            if self._at_replica is not None:
                self._at_replica[index].add(number)
        deadline = None if self._deadline_s is None else self._at[number] + self._deadline_s
        servers[index].send(number, self._rows[number], deadline, self._refuse, came_before)

    def _chosen(self, number: int) -> int:
        loads = self._loads[0 if self._client is None else self._client[number]]
        if not self._lost:
            return less_loaded_of_two(loads, self._random.random)
        living = [index for index in range(len(loads)) if index not in self._lost]
        return living[less_loaded_of_two([loads[index] for index in living], self._random.random)]

    def _refuse(self, number: int, is_late: bool) -> None:
        if not self._done[number]:
            (self._late if is_late else self._refused)[number] = 1
            self._end(number)

    def _refuse_without_replica(self, number: int) -> None:
        self._replica[number] = -1
        self._refused[number] = self._done[number] = 1
        self._last = max(self._last, self._world.now)

    def _expire(self, number: int) -> None:
        if not self._done[number]:
            self._late[number] = 1
            self._servers[self._replica[number]].cancel(number)
            self._end(number)

    def _end(self, number: int) -> None:
        self._done[number] = 1
        self._last = max(self._last, self._world.now)
        if self._balances:
            self._leave([number], self._replica[number])

    def _leave(self, numbers: list[int], index: int) -> None:
        """Count requests at a replica as under way no more."""
        for number in numbers:
            if self._at_replica is None or number in self._at_replica[index]:
                self._loads[0 if self._client is None else self._client[number]][index] -= MORE_THAN_BEGUN
            if self._at_replica is not None:
                self._at_replica[index].discard(number)

    def _lose(self, loss: Loss) -> None:
        index = loss.replica
        if index in self._lost:
            return
        self._close_books(index)
        self._lost.add(index)
        self._servers[index].lose()
        assert self._at_replica is not None
        under_way, self._at_replica[index] = sorted(self._at_replica[index]), set()
        for number in under_way:
            self._loads[0 if self._client is None else self._client[number]][index] -= MORE_THAN_BEGUN
            if self._at[number] + self._latency[number] - self._transport / 2 > self._world.now:
                # Its answer was on its way out.
                self._latency[number], self._done[number] = math.nan, 0
            if not self._done[number]:
                self._send(number)
        if loss.back_s is not None:
            self._world.at(self._world.now + loss.back_s, Event(None, self._return, (index,), False))

    def _return(self, index: int) -> None:
        self._servers[index] = self._new_server(index)
        assert self._at_replica is not None
        for client, loads in enumerate(self._loads):
            begun = [
                load
                - MORE_THAN_BEGUN * sum(self._client is None or self._client[number] == client for number in numbers)
                for load, numbers in zip(loads, self._at_replica, strict=True)
            ]
            # What the others got meanwhile is not made up for.
            loads[index] = max(begun)
        self._lost.discard(index)

    def _close_books(self, index: int) -> None:
        """Count what a server did, once."""
        if index not in self._lost:
            server = self._servers[index]
            batches, rows, busy = self._ended[index]
            self._ended[index] = (
                batches + server.batches,
                rows + server.batch_rows,
                busy + server.lanes.busy_seconds,
            )


def _check(arrivals: Arrivals, replicas: int, deadline_s: float | None, losses: Sequence[Loss], clients: int) -> None:
    seconds, rows = arrivals.seconds, arrivals.rows
    if seconds.ndim != 1 or seconds.shape != rows.shape:
        raise InputError(f"arrivals of shapes {seconds.shape} and {rows.shape}: expected (requests,) twice")
    if len(seconds) and not (np.isfinite(seconds).all() and seconds[0] >= 0 and (np.diff(seconds) >= 0).all()):
        raise InputError("the arrivals' seconds are not ascending from 0 on; sort them")
    if len(rows) and rows.min() < 1:
        raise InputError(f"a request of {rows.min()} rows arrives; expected at least 1")
    if not 1 <= replicas <= MOST_REPLICAS or clients < 1:
        raise InputError(f"{replicas} replicas, {clients} clients: expected 1 to {MOST_REPLICAS}, and at least 1")
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise InputError(f"a deadline of {deadline_s:g} s: expected above 0")
    for loss in losses:
        times = (loss.at_s, 0.0 if loss.back_s is None else loss.back_s)
        if not 0 <= loss.replica < replicas or not all(0 <= each < math.inf for each in times):
            raise InputError(f"{loss}: expected one of {replicas} replicas, counted from 0, and times from 0 on")
