"""One simulated server: Fuseline's own batcher on virtual time, in front of lanes that take measured seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.virtual_lanes import VirtualLanes
from fuseline.benchmarks.plan.virtual_time import Event, VirtualLoop, World
from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.errors import DeadlineError, InputError, OverloadedError

_ROW = np.zeros(1, np.uint8)
_RESOLUTION = 1e-9


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How the servers are set, by the names of `fuseline serve`'s flags; None: as the profile was measured."""

    lanes: int | None = None
    max_batch: int | None = None
    max_delay_ms: float = 0.0
    max_queue_rows: int = 1024
    max_queue_ms: float = 2000.0
    latency_target_ms: float | None = None
    clients_beside: bool = False
    """Whether clients share the cores with the servers, as they did when the profile was measured."""


def policy_of(profile: Profile, options: ServingOptions) -> BatchPolicy:
    """Return the policy by which a server of `profile` batches with such `options`.

    Raises:
        InputError: the profile doesn't tell how long batches take with such options, or they break a rule.
    """
    if options.lanes not in {None, profile.lanes}:
        raise InputError(
            f"lanes {options.lanes}: the profile of {profile.model} was measured with {profile.lanes}; measure one "
            f"with --lanes {options.lanes}"
        )
    rows = [bucket.rows for bucket in profile.buckets]
    if options.max_batch is not None:
        rows = [bucket for bucket in rows if bucket <= options.max_batch]
        if not rows or rows[-1] != options.max_batch:
            known = ", ".join(f"{bucket.rows}" for bucket in profile.buckets)
            raise InputError(
                f"max_batch {options.max_batch}: the profile of {profile.model} has batches of {known} rows"
            )
    alone = [bucket.rows for bucket in profile.alone if bucket.rows <= rows[-1]]
    try:
        return BatchPolicy(
            tuple(rows),
            max_queue_rows=options.max_queue_rows,
            max_queue_ms=options.max_queue_ms,
            max_delay_ms=options.max_delay_ms,
            latency_target_ms=options.latency_target_ms,
            # As the server: who sets a delay asks for fuller batches.
            unsaturated_rows=None if options.max_delay_ms else profile.unsaturated_rows,
            inline_below_ms=profile.inline_below_ms,
            # Nothing comes between two turns of an event loop that take no time.
            quiet_turns=1,
            lanes=profile.lanes,
            lanes_share_device=profile.device == "GPU",
            alone_rows=max(alone, default=0),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


class VirtualServer:
    """A server that was just started. Requests are numbers here; whoever sends them knows more."""

    def __init__(
        self,
        world: World,
        profile: Profile,
        options: ServingOptions,
        random: np.random.Generator,
        on_answers: Callable[[list[tuple[int, float]]], None],
    ) -> None:
        """`on_answers` is called when a batch has ended, with each request that it answers and the time of the answer.

        Times lie ahead by what handing out the answers takes, and the ways from and to the client while all lanes are
        busy.
        """
        policy = policy_of(profile, options)
        self.loop = VirtualLoop(world)
        self._on_answers = on_answers
        self._world = world
        self._half = profile.front_end.loop_seconds / 2
        self._half_per_row = profile.front_end.loop_seconds_per_mb * profile.front_end.request_mb / 2
        cpu_seconds, cpu_seconds_per_row = _taken_off_lanes(profile, options)
        self._cpu_half, self._cpu_half_per_row = cpu_seconds / 2, cpu_seconds_per_row / 2
        self._busy_way = profile.front_end.busy_transport_seconds / 2
        # Requests that came while all lanes were busy.
        self._waited: set[int] = set()
        self._takes_cores = cpu_seconds + cpu_seconds_per_row > 0
        self._numbers: dict[Any, int] = {}
        self._requests: dict[int, Any] = {}
        self.batches = 0
        """Number of batches so far."""
        self.batch_rows = 0
        """Number of rows of all batches, before padding."""
        measured = set(policy.buckets)
        buckets = tuple(bucket for bucket in profile.buckets if bucket.rows in measured)
        alone = tuple(bucket for bucket in profile.alone if bucket.rows <= policy.alone_rows)
        self.lanes = VirtualLanes(world, self.loop, policy.lanes, buckets, alone, random)
        self._batcher = Batcher(
            self.lanes.infer_alone if policy.lanes > 1 else self.lanes.infers[0],
            policy,
            row_shape=(1,),
            lanes=self.lanes.infers if policy.lanes > 1 else (),
            # As at a server's start, whose warm-up takes the fastest of a few runs.
            seconds_per_bucket={bucket.rows: bucket.median for bucket in buckets},
            alone_seconds_per_bucket={bucket.rows: bucket.median for bucket in alone},
            clock=self.loop.clock,
            on_batch=self._note_batch,
            executor=self.lanes,
        )

    @property
    def usual_work(self) -> float:
        """Seconds of the event loop until a request of one row is submitted."""
        return self._half + self._half_per_row

    def send(
        self,
        number: int,
        rows: int,
        deadline: float | None,
        on_refusal: Callable[[int, bool], None],
        came_before: float = 0.0,
    ) -> None:
        """Take a request of so many rows that came so many seconds ago; `deadline` is on the world's clock.

        `on_refusal` is called where it isn't admitted, with whether that is for its deadline.
        """
        if self._takes_cores:
            self.lanes.delay(self._cpu_half + rows * self._cpu_half_per_row)
        if self._busy_way and self.lanes.are_busy:
            self._waited.add(number)
        loop, now = self.loop, self._world.now
        ends = max(now - came_before, loop.busy_until) + self._half + rows * self._half_per_row
        loop.busy_until = ends
        # An idle loop has just done its work by now, which needs no event.
        if ends > now + _RESOLUTION:
            event = Event(loop, self._submit, (number, rows, deadline, on_refusal), True)
            self._world.at(ends, event)
        else:
            loop.enter()
            self._submit(number, rows, deadline, on_refusal)

    def cancel(self, number: int) -> None:
        """Drop a request, if it was admitted and has no answer yet."""
        self._waited.discard(number)
        if (request := self._requests.pop(number, None)) is not None:
            self._numbers.pop(request, None)
            if not request.cancel():
                # It was dropped already; asyncio wants to have it known that somebody heard.
                request.exception()

    def lose(self) -> None:
        """Be no more."""
        self.loop.is_lost = True

    def _submit(self, number: int, rows: int, deadline: float | None, on_refusal: Callable[[int, bool], None]) -> None:
        try:
            request = self._batcher.submit([_ROW] * rows, deadline=deadline)
        except OverloadedError:
            on_refusal(number, False)
        except DeadlineError:
            on_refusal(number, True)
        else:
            self._numbers[request] = number
            if deadline is not None:
                self._requests[number] = request

    def _note_batch(self, stats: BatchStats) -> None:
        self.batches += 1
        self.batch_rows += stats.rows
        loop, numbers = self.loop, self._numbers
        half, half_per_row = self._half, self._half_per_row
        answers = []
        at = max(loop.time(), loop.busy_until)
        way = self._busy_way if self._busy_way and self.lanes.are_busy else 0.0
        for request, _, rows in stats.shares:
            if request.done() and (number := numbers.pop(request, None)) is not None:
                self._requests.pop(number, None)
                if self._takes_cores:
                    self.lanes.delay(self._cpu_half + rows * self._cpu_half_per_row)
                at += half + rows * half_per_row
                answers.append((number, at + way + self._way_of(number)))
        loop.busy_until = at
        if answers:
            self._on_answers(answers)

    def _way_of(self, number: int) -> float:
        """Return by how much longer a request was on its way here, as all lanes were busy."""
        if number in self._waited:
            self._waited.remove(number)
            return self._busy_way
        return 0.0


def _taken_off_lanes(profile: Profile, options: ServingOptions) -> tuple[float, float]:
    """Return the CPU seconds that a request takes off the lanes' cores, and those for each row."""
    front_end = profile.front_end
    if profile.device != "CPU":
        return 0.0, 0.0
    clients = front_end.client_cpu_seconds if options.clients_beside else 0.0
    return front_end.cpu_seconds + clients, front_end.cpu_seconds_per_mb * front_end.request_mb
