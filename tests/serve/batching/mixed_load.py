"""Callers of several kinds at once in front of a real `Batcher` whose backend's time is simulated."""

import asyncio
from dataclasses import dataclass

import numpy as np

from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.errors import DeadlineError, OverloadedError
from tests.fakes.virtual_time import run_in_virtual_time
from tests.serve.batching.simulated_load import ROW, Machine, Outcome, simulated_batcher


@dataclass(frozen=True)
class Kind:
    """Callers who send requests of `rows` as a Poisson process, each with `patience_s` until its deadline."""

    rows_per_s: float
    rows: int = 1
    patience_s: float | None = None
    caller: Caller = ANYONE


def open_loops(machine: Machine, kinds: dict[str, Kind], *, seconds: float = 20.0, **options) -> dict[str, Outcome]:
    """Return what became of each of `kinds`, by name."""
    random = np.random.default_rng(0)
    outcomes = {name: Outcome(seconds, kind.rows) for name, kind in kinds.items()}
    arrivals = sorted(
        (at, name)
        for name, kind in kinds.items()
        for at in random.uniform(0, seconds, round(kind.rows_per_s * seconds / kind.rows))
    )

    async def main(loop):
        batcher = simulated_batcher(loop, machine, random, Outcome(seconds, 1), options)

        async def call(kind, outcome):
            came = loop.time()
            deadline = None if kind.patience_s is None else came + kind.patience_s
            try:
                future = batcher.submit([ROW] * kind.rows, deadline=deadline, caller=kind.caller)
            except OverloadedError as error:
                outcome.overloaded.append(error)
                return
            except DeadlineError:
                outcome.hopeless += 1
                return
            outcome.admitted += 1
            try:
                async with asyncio.timeout_at(deadline):
                    await future
            except TimeoutError:
                outcome.late += 1
            except DeadlineError:
                outcome.dropped += 1
            else:
                outcome.latency_s.append(loop.time() - came)
                outcome.good_s.append(loop.time())

        async with asyncio.TaskGroup() as calls:
            for at, name in arrivals:
                if at > loop.time():
                    await asyncio.sleep(at - loop.time())
                calls.create_task(call(kinds[name], outcomes[name]))
        await batcher.drain()
        return outcomes

    return run_in_virtual_time(main)


@dataclass(frozen=True)
class Waiting:
    """Callers each of whom waits for an answer of `rows` before asking again."""

    callers: int
    rows: int = 1
    caller: Caller = ANYONE


def closed_loops(
    machine: Machine, kinds: dict[str, Waiting], *, seconds: float = 20.0, **options
) -> dict[str, Outcome]:
    """Return what became of each of `kinds`, by name; nobody is refused for the time it takes."""
    outcomes = {name: Outcome(seconds, kind.rows) for name, kind in kinds.items()}

    async def main(loop):
        random = np.random.default_rng(1)
        batcher = simulated_batcher(loop, machine, random, Outcome(seconds, 1), {"max_queue_ms": 1e9} | options)

        async def call(kind, outcome):
            while (came := loop.time()) < seconds:
                await batcher.submit([ROW] * kind.rows, caller=kind.caller)
                outcome.good_s.append(loop.time())
                outcome.latency_s.append(loop.time() - came)

        async with asyncio.TaskGroup() as calls:
            for name, kind in kinds.items():
                for _ in range(kind.callers):
                    calls.create_task(call(kind, outcomes[name]))
        await batcher.drain()
        return outcomes

    return run_in_virtual_time(main)
