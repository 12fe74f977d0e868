"""Callers in front of a real `Batcher` whose backend's time is simulated: thousands of arrivals in a second."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fuseline.serve.batching.admission import Ready
from fuseline.serve.errors import DeadlineError, OverloadedError
from tests.fakes.virtual_time import VirtualExecutor, run_in_virtual_time
from tests.serve.batching.batchers import batcher_of

CPU = {1: 0.012, 2: 0.018, 3: 0.025, 4: 0.032, 6: 0.048, 8: 0.064, 12: 0.096, 16: 0.128}
"""Seconds by bucket: about ResNet-18 at 224 x 224 on two cores, where from 4 rows on a row costs the same."""

GPU = {bucket: 0.0003 + 0.000012 * bucket for bucket in (1, 2, 4, 8, 16, 32)}
"""Seconds by bucket of `fuseline.benchmarks.simulated_backend`: 32 rows take twice as long as one."""

LANE = {1: 0.0165, 2: 0.0320, 3: 0.0475, 4: 0.0630}
"""Seconds by bucket of one of two lanes that share those cores."""

ALONE = {1: 0.012, 2: 0.018, 3: 0.025}
"""Seconds by bucket of a batch that has both cores beside such lanes: those of `CPU`."""

SMALL_BATCHES = {id(CPU): 4, id(GPU): None, id(LANE): 2}

ROW = np.zeros(1, np.uint8)


@dataclass(frozen=True)
class Machine:
    """The machine that the backend runs on."""

    seconds: dict[int, float] = field(default_factory=lambda: CPU)
    noise: float = 0.05
    """Standard deviation of the logarithm of a batch's time."""
    hiccups: float = 0.001
    """Share of the batches that take three times as long."""
    slowness: Callable[[float], float] = lambda _: 1.0
    """Factor on every batch's time, by the time in seconds."""
    overhead_s: float = 0.0
    lanes: int = 1
    alone: dict[int, float] = field(default_factory=dict)
    """Seconds by bucket of a batch that has all cores beside several lanes."""

    @property
    def unsaturated_rows(self) -> int | None:
        """What `CpuBatching.unsaturated_rows` says."""
        return SMALL_BATCHES[id(self.seconds)]


QUIET = Machine(noise=0.03, hiccups=0.0)


@dataclass
class Outcome:
    """What became of the callers."""

    seconds: float
    rows: int
    """Rows of each request."""
    good_s: list[float] = field(default_factory=list)
    """When answers came that were in time."""
    latency_s: list[float] = field(default_factory=list)
    """Seconds from each answered request to its answer, late ones too."""
    admitted: int = 0
    late: int = 0
    """Admitted, and answered too late or left by their callers."""
    dropped: int = 0
    """Admitted, and told later that it would be too late."""
    overloaded: list[OverloadedError] = field(default_factory=list)
    hopeless: int = 0
    """Told that no queue could help."""
    predictions: list[tuple[float, float]] = field(default_factory=list)
    """(predicted seconds, seconds by which the answer came later)."""
    batches: int = 0

    @property
    def goodput(self) -> float:
        """Rows a second that were answered in time."""
        return self.goodput_between(0.0, self.seconds)

    def goodput_between(self, start: float, end: float) -> float:
        """Rows a second that were answered in time between `start` and `end`, in seconds."""
        return self.rows * sum(start <= at < end for at in self.good_s) / (end - start)

    @property
    def in_time(self) -> float:
        """Share of the admitted requests that were answered in time."""
        return len(self.good_s) / max(1, self.admitted)

    def percentile_ms(self, percent: float) -> float:
        """Percentile of the answers' latency."""
        return 1000 * float(np.percentile(self.latency_s, percent))


def closed_loop(machine: Machine, callers: int = 32, seconds: float = 10.0) -> float:
    """Return the rows a second that `callers` get, each of whom waits for an answer before it asks again."""

    async def main(loop):
        batcher = simulated_batcher(loop, machine, np.random.default_rng(1), Outcome(seconds, 1), {})
        answered = 0

        async def caller():
            nonlocal answered
            while loop.time() < seconds:
                await batcher.submit([ROW])
                answered += 1

        await asyncio.gather(*(caller() for _ in range(callers)))
        await batcher.drain()
        return answered / loop.time()

    return run_in_virtual_time(main)


def open_loop(
    machine: Machine,
    rows_per_s: float,
    patience_s: Sequence[float | None],
    *,
    seconds: float = 20.0,
    rows: int = 1,
    decode_s: float = 0.0,
    decode_threads: int = 2,
    seed: int = 0,
    **options,
) -> Outcome:
    """Send requests of `rows` as a Poisson process, each with one of `patience_s` as its deadline, drawn at random.

    With `decode_s` each image is first decoded by a pool of `decode_threads`, as `ImageRows` does.
    """
    random = np.random.default_rng(seed)
    outcome = Outcome(seconds, rows)
    arrivals = np.sort(random.uniform(0, seconds, round(rows_per_s * seconds / rows)))
    patience = random.choice(np.array(patience_s, dtype=object), len(arrivals))

    async def main(loop):
        batcher = simulated_batcher(loop, machine, random, outcome, options)
        pool, decoding = asyncio.Semaphore(decode_threads), 0

        async def decode():
            async with pool:
                await asyncio.sleep(decode_s * float(np.exp(random.normal(0, 0.2))))

        async def call(patience):
            nonlocal decoding
            came = loop.time()
            deadline = None if patience is None else came + patience
            reservation = None
            try:
                if decode_s:
                    waiting = decode_s * (decoding + rows) / decode_threads
                    alone = decode_s * -(-rows // decode_threads)
                    reservation = batcher.reserve(rows, deadline=deadline, ready=Ready(max(waiting, alone), alone))
                    decoding += rows
                    await asyncio.gather(*(decode() for _ in range(rows)))
                    decoding -= rows
                future = batcher.submit([ROW] * rows, deadline=deadline, reservation=reservation)
            except OverloadedError as error:
                outcome.overloaded.append(error)
                return
            except DeadlineError:
                outcome.hopeless += reservation is None
                outcome.admitted += reservation is not None
                outcome.dropped += reservation is not None
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

        calls = set()
        for at, each in zip(arrivals, patience, strict=True):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            calls.add(task := loop.create_task(call(each)))
            task.add_done_callback(calls.discard)
        await asyncio.sleep(max(0.0, seconds - loop.time()))
        if calls:
            await asyncio.wait(calls)
        await batcher.drain()
        return outcome

    return run_in_virtual_time(main)


def burst(machine: Machine, requests: int, patience_s: float) -> Outcome:
    """Send `requests` at once, each with a deadline `patience_s` ahead."""
    outcome = Outcome(patience_s, 1)

    async def main(loop):
        batcher = simulated_batcher(loop, machine, np.random.default_rng(0), outcome, {})
        futures = []
        for _ in range(requests):
            try:
                futures.append(batcher.submit([ROW], deadline=patience_s))
            except OverloadedError as error:
                outcome.overloaded.append(error)
        outcome.admitted = len(futures)
        for done in asyncio.as_completed(futures):
            try:
                await done
            except DeadlineError:
                outcome.dropped += 1
            else:
                outcome.good_s.append(loop.time()) if loop.time() <= patience_s else None
        await batcher.drain()
        return outcome

    return run_in_virtual_time(main)


def simulated_batcher(loop, machine, random, outcome, options):
    """Return a batcher whose backend takes the times of `machine`; `outcome` counts its batches."""
    executor = VirtualExecutor(loop)

    def infer(pixels, table):
        seconds = table[len(pixels)] * machine.slowness(loop.time()) + machine.overhead_s
        seconds *= float(np.exp(random.normal(0, machine.noise)))
        if random.random() < machine.hiccups:
            seconds *= 3
        outcome.batches += 1
        executor.take(seconds)
        return np.zeros((len(pixels), 2), np.float32)

    lane = functools.partial(infer, table=machine.seconds)
    batcher = batcher_of(
        functools.partial(infer, table=machine.alone or machine.seconds),
        lanes=(lane,) * machine.lanes if machine.lanes > 1 else (),
        alone_rows=max(machine.alone, default=0),
        alone_seconds_per_bucket=machine.alone,
        row_shape=(1,),
        buckets=tuple(machine.seconds),
        seconds_per_bucket=machine.seconds,
        unsaturated_rows=machine.unsaturated_rows,
        clock=loop.clock,
        executor=executor,
        **({"max_queue_rows": 1024, "max_queue_ms": 1000.0} | options),
    )
    learn = batcher._admission.learn

    def noted(answered, now, **rest):
        outcome.predictions += [(predicted.seconds, now - predicted.at) for predicted in answered]
        learn(answered, now, **rest)

    batcher._admission.learn = noted
    return batcher
