"""One simulated server: Fuseline's own batcher on virtual time, in front of lanes that take measured seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.virtual_lanes import VirtualLanes
from fuseline.benchmarks.plan.virtual_time import VirtualLoop, World
from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.errors import DeadlineError, InputError, OverloadedError

_ROW = np.zeros(1, np.uint8)


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How the servers are set, by the names of `fuseline serve`'s flags; None: as the profile was measured."""

    lanes: int | None = None
    max_batch: int | None = None
    max_delay_ms: float = 0.0
    max_queue_rows: int = 1024
    max_queue_ms: float = 2000.0
    latency_target_ms: float | None = None


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
        policy: BatchPolicy,
        random: np.random.Generator,
        on_answer: Callable[[int, float], None],
    ) -> None:
        """`on_answer` is called, with the request and the time of its answer, when the batch has ended.

        The time lies ahead by what handing out the answers before it takes.
        """
        self.loop = VirtualLoop(world)
        self._on_answer = on_answer
        self._half = profile.front_end.loop_seconds / 2
        self._half_per_row = profile.front_end.loop_seconds_per_mb * profile.front_end.request_mb / 2
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

    def send(self, number: int, rows: int, deadline: float | None, on_refusal: Callable[[int, bool], None]) -> None:
        """Take a request of so many rows; `deadline` is on the world's clock.

        `on_refusal` is called where it isn't admitted, with whether that is for its deadline.
        """
        self.loop.occupy(self._half + rows * self._half_per_row, self._submit, number, rows, deadline, on_refusal)

    def cancel(self, number: int) -> None:
        """Drop a request, if it was admitted and has no answer yet."""
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
        now = loop.time()
        at = max(now, loop.busy_until)
        for request, _, rows in stats.shares:
            if request.done() and (number := numbers.pop(request, None)) is not None:
                self._requests.pop(number, None)
                at += self._half + rows * self._half_per_row
                self._on_answer(number, at)
        loop.busy_until = at
