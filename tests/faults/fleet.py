"""Several real servers, each with a model of a version of its own, under a load of a client that balances over them."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuseline.serve.client import AsyncClient
from fuseline.serve.errors import FuselineError
from tests.fakes.colours import LABELS, plain
from tests.serve.model_control.repositories import put
from tests.serve.processes import FAST, ServerProcess, server_process

NAME = "dns:///fleet.test:8001"
"""A name that only the resolver of a `Fleet` knows."""


@dataclass
class Fleet:
    """The servers, and what a client's resolver says of them."""

    servers: list[ServerProcess]
    known: list[str]
    """Addresses that the name stands for."""
    lookups: int = 0

    def resolver(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("fleet.test", 8001)
        self.lookups += 1
        return list(self.known)

    def send(self, position: int, number: signal.Signals) -> None:
        """Send a signal to a server."""
        os.kill(self.servers[position].process.pid, number)


@contextmanager
def fleet_of(folder: Path, count: int, known: int | None = None) -> Iterator[Fleet]:
    """Start `count` servers, of which the first `known`, by default all, are known by the name at first.

    The one at position N serves version N + 1, which tells whose an answer is.
    """
    with ExitStack() as stack:
        started = []
        for position in range(count):
            root = folder / f"server-{position}"
            put(root, "colours", position + 1)
            started.append(server_process("--model-repository", root, *FAST))
        with ThreadPoolExecutor(count) as pool:
            servers = list(pool.map(stack.enter_context, started))
        try:
            yield Fleet(servers, [server.address for server in servers[:known]])
        finally:
            for server in servers:
                if server.process.poll() is None:
                    server.process.send_signal(signal.SIGCONT)
                    server.process.kill()
                assert server.process.stdout is not None
                if not server.process.stdout.closed:
                    server.process.communicate()


@dataclass
class BalancedLoad:
    """What the callers have got so far."""

    answers: Counter[int] = field(default_factory=Counter)
    """Answers by the position of the server."""
    last_at: dict[int, float] = field(default_factory=dict)
    """When the last answer of each server came, by `time.monotonic`."""
    sent: int = 0
    errors: list[FuselineError] = field(default_factory=list)
    longest_s: float = 0.0

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 the callers tell no one
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> Counter[int]:
        """Return whose the next `count` answers, or a few more, are."""
        before = Counter(self.answers)
        await self.until(lambda: self.answers.total() - before.total() >= count)
        return self.answers - before


@asynccontextmanager
async def balanced_load(
    client: AsyncClient, *, callers: int = 24, pause_s: float = 0.01, timeout_s: float = 20
) -> AsyncIterator[BalancedLoad]:
    """Have callers send one picture after the other, with pauses; at the end none is under way.

    Without pauses every core is busy, and then those servers get more to which the system gives more of them.
    """
    load = BalancedLoad()
    stopped = asyncio.Event()

    async def call(number: int) -> None:
        while not stopped.is_set():
            kind = (number + load.sent) % len(LABELS)
            load.sent += 1
            begun = time.monotonic()
            try:
                answer = await client.classify(plain(LABELS[kind]), timeout_s=timeout_s)
            except FuselineError as error:
                load.errors.append(error)
                await asyncio.sleep(0.01)
                continue
            assert answer.results[0].predictions[0].label == LABELS[kind]
            position = int(answer.model_version) - 1
            load.answers[position] += 1
            load.last_at[position] = now = time.monotonic()
            load.longest_s = max(load.longest_s, now - begun)
            await asyncio.sleep(pause_s)

    calls = [asyncio.create_task(call(number)) for number in range(callers)]
    try:
        yield load
    finally:
        stopped.set()
        await asyncio.gather(*calls)
    assert load.sent == load.answers.total() + len(load.errors)


def unevenness(answers: Counter[int], positions: Sequence[int]) -> float:
    """The largest deviation from an even share, as a share of it; infinite if another server has answered too."""
    if set(answers) - set(positions):
        return float("inf")
    even = answers.total() / len(positions)
    return max(abs(answers[position] - even) / even for position in positions)
