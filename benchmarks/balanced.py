"""`python -m fuseline.benchmarks.balanced`: one client over three servers, healthy and with one that fails.

Servers and client share this machine. The model costs next to nothing, so that what is measured is calls. Each server
has a version of its own, which tells whose an answer is.
"""

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.harness.options import Json, measuring
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.serve.client import AsyncClient
from fuseline.serve.client import servers as servers_module
from fuseline.serve.command_line import run_command_line
from fuseline.serve.errors import FuselineError

COMMAND = "python -m fuseline.benchmarks.balanced"
FAULTS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "drained": signal.SIGTERM}
WATCH_STOPPED_S = 12.0
"""Seconds of load after a server was stopped, which is found out by pings."""

_SIDE = 32
_CLASSES = 1000
_FLAGS = ("--backend", "onnxruntime", "--threads", "1")


@dataclass(frozen=True, slots=True)
class Evenness:
    """How evenly three healthy servers were loaded."""

    by_stream: bool
    pause_ms: float
    """Pause of each caller between its requests; 0: every core is busy."""
    answers: dict[int, int]
    """By server."""
    largest_deviation: float
    """From an even share, as a share of it."""
    failed: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What it cost that one of three servers failed."""

    fault: str
    by_stream: bool
    until_no_requests_s: float | None
    """Seconds from the fault until the client gave the server nothing more; None: it went on."""
    requests: int
    failed: int
    longest_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of a request in microseconds, over all rounds."""

    servers: int
    by_stream: bool
    client_us: Spread
    server_us: Spread


class Load:
    """Callers that send one picture after the other, and what they got."""

    def __init__(self, client: AsyncClient, callers: int, pause_s: float = 0.0) -> None:
        self.answers: Counter[int] = Counter()
        self.failed = 0
        self.longest_s = 0.0
        self._client = client
        self._pause_s = pause_s
        self._ended = False
        self._pictures = generated_pictures((_SIDE, _SIDE, 3), 8)
        self._expected: dict[int, int] = {}
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(callers)]

    async def end(self) -> None:
        """Send nothing more, and wait for what is under way."""
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        kind = number % len(self._pictures)
        while not self._ended:
            began = time.monotonic()
            try:
                answer = await self._client.classify(self._pictures[kind])
            except FuselineError:
                self.failed += 1
                await asyncio.sleep(0.01)
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            index = answer.results[0].predictions[0].index
            assert self._expected.setdefault(kind, index) == index, "a wrong answer"
            self.answers[int(answer.model_version)] += 1
            if self._pause_s:
                await asyncio.sleep(self._pause_s)


@contextmanager
def fleet(package: Path, count: int, folder: Path) -> Iterator[list[ServerProcess]]:
    """Start servers, that at position N with version N + 1 of the package."""
    with ExitStack() as stack:
        servers = []
        for version in range(1, count + 1):
            root = folder / f"server-{version}"
            shutil.copytree(package, root / package.name / str(version), dirs_exist_ok=True)
            servers.append(stack.enter_context(started_server(None, "--model-repository", str(root), *_FLAGS)))
        yield servers


async def evenness(servers: list[ServerProcess], *, by_stream: bool, pause_s: float, seconds: float) -> Evenness:
    """Measure how evenly three healthy servers are loaded."""
    async with AsyncClient([each.address for each in servers], by_stream=by_stream) as client:
        load = Load(client, 24, pause_s)
        await asyncio.sleep(seconds)
        await load.end()
    even = load.answers.total() / len(servers)
    deviation = max(abs(load.answers[version] - even) / even for version in range(1, len(servers) + 1))
    answers = dict(sorted(load.answers.items()))
    return Evenness(by_stream, 1000 * pause_s, answers, round(deviation, 4), load.failed)


async def fault(servers: list[ServerProcess], name: str, *, by_stream: bool, seconds: float) -> Fault:
    """Measure what it costs that the first server fails so."""
    with _ejections() as ejected:
        async with AsyncClient([each.address for each in servers], by_stream=by_stream) as client:
            load = Load(client, 24, 0.005)
            await asyncio.sleep(seconds)
            os.kill(servers[0].pid, FAULTS[name])
            begun = time.monotonic()
            await asyncio.sleep(WATCH_STOPPED_S if name == "stopped" else seconds)
            await load.end()
    if name == "stopped":
        os.kill(servers[0].pid, signal.SIGCONT)
    at = next((at for address, at in ejected if address == servers[0].address and at >= begun), None)
    requests = load.answers.total() + load.failed
    until_s = None if at is None else round(at - begun, 3)
    return Fault(name, by_stream, until_s, requests, load.failed, round(load.longest_s, 3))


async def cost(servers: list[ServerProcess], *, by_stream: bool, seconds: float) -> tuple[float, float]:
    """Return the CPU microseconds of a request: the client's, and all the servers'."""
    async with AsyncClient([each.address for each in servers], by_stream=by_stream) as client:
        load = Load(client, 32)
        await asyncio.sleep(0.5)
        answered, own, theirs = load.answers.total(), time.process_time(), _cpu_of(servers)
        await asyncio.sleep(seconds)
        count = load.answers.total() - answered
        own, theirs = time.process_time() - own, _cpu_of(servers) - theirs
        await load.end()
    assert not load.failed
    return 1e6 * own / count, 1e6 * theirs / count


def main(
    seconds: Annotated[float, typer.Option(min=0.5, max=20, help="How long each stretch is measured.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, max=9, help="Rounds of the CPU costs, calls and streams in turn.")] = 3,
    json: Json = None,
) -> None:
    """Measure one client over three servers: evenness, faults, and what calls and streams cost. Under 3 minutes."""
    command = f"{COMMAND} --seconds {seconds:g} --rounds {rounds}"
    with measuring("balanced", command, json) as (say, finish), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = write_tiny_package(folder / "tiny", side=_SIDE, classes=_CLASSES)
        with fleet(package, 3, folder / "healthy") as servers:
            even = []
            for by_stream in (False, True):
                for pause_s in (0.0, 0.01):
                    say(f"evenness, {_way(by_stream)}, pauses of {1000 * pause_s:g} ms")
                    even.append(asyncio.run(evenness(servers, by_stream=by_stream, pause_s=pause_s, seconds=seconds)))
            costs = list(_costs(servers, rounds, seconds, say))
        faults = []
        for each in FAULTS:
            # One fleet for both ways but where the server is gone after the first.
            say(f"a server is {each}")
            for by_stream in (False, True):
                with fleet(package, 3, folder / f"{each}-{by_stream}") as servers:
                    faults.append(asyncio.run(fault(servers, each, by_stream=by_stream, seconds=seconds / 2)))
        finish(
            _table(even, faults, costs),
            {
                "evenness": [asdict(each) for each in even],
                "faults": [asdict(each) for each in faults],
                "cpu": [asdict(each) for each in costs],
            },
        )


def _costs(servers: list[ServerProcess], rounds: int, seconds: float, say) -> Iterator[Cost]:
    cases = [(count, by_stream) for count in (1, 3) for by_stream in (False, True)]
    taken: dict[tuple[int, bool], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds):
        say(f"CPU, round {number + 1} of {rounds}")
        for count, by_stream in cases:
            taken[count, by_stream].append(asyncio.run(cost(servers[:count], by_stream=by_stream, seconds=seconds / 2)))
    for (count, by_stream), samples in taken.items():
        client, server = np.array(samples).T
        yield Cost(count, by_stream, spread_of(list(client)), spread_of(list(server)))


@contextmanager
def _ejections() -> Iterator[list[tuple[str, float]]]:
    """Yield the list to which the client's log adds each server that gets no more requests, and when."""
    found: list[tuple[str, float]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "gets no requests" in record.msg:
                assert isinstance(record.args, tuple)
                found.append((str(record.args[0]), time.monotonic()))

    log, handler = logging.getLogger(servers_module.__name__), Handler()
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


def _cpu_of(servers: list[ServerProcess]) -> float:
    return sum(cpu_seconds(each.pid) or 0.0 for each in servers)


def _way(by_stream: bool) -> str:
    return "streams" if by_stream else "calls"


def _table(even: list[Evenness], faults: list[Fault], costs: list[Cost]) -> Table:
    table = Table("case", "by", "result")
    for each in even:
        table.add_row(
            f"three healthy servers, pauses of {each.pause_ms:g} ms",
            _way(each.by_stream),
            f"at most {each.largest_deviation:.1%} from even ({', '.join(map(str, each.answers.values()))}), "
            f"{each.failed} failed",
        )
    for one in faults:
        until = "goes on" if one.until_no_requests_s is None else f"after {one.until_no_requests_s:g} s"
        table.add_row(
            f"one is {one.fault}",
            _way(one.by_stream),
            f"gets nothing more {until}; {one.failed} of {one.requests} failed, longest {one.longest_s:g} s",
        )
    for case in costs:
        table.add_row(
            f"CPU of a request, {case.servers} server{'s' if case.servers > 1 else ''}",
            _way(case.by_stream),
            f"client {case.client_us.median:.0f} us, servers {case.server_us.median:.0f} us",
        )
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_command_line(app)
