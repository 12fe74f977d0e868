"""Real servers that write down their batches, and stretches of real load on them."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.load.closed_loop import ClosedLoad, ClosedResult, run_closed_loop
from fuseline.benchmarks.load.load import LoadResult
from fuseline.benchmarks.load.open_loop import OpenLoad, OpenResult, poisson_arrivals, run_open_loop
from fuseline.benchmarks.load.target import Target, connect
from fuseline.benchmarks.plan import recorded_server
from fuseline.benchmarks.plan.balanced_calls import open_balanced_calls
from fuseline.benchmarks.plan.batch_record import BatchRecord
from fuseline.serve.errors import BackendError, InputError

BURN_IN_S = 0.5
PATIENCE_S = 20.0

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Stretch:
    """One load on the servers, and what was seen of it."""

    start: float
    """When it began, burn-in included, of `time.monotonic`."""
    end: float
    concurrency: int | None
    """Number of callers of a closed loop; None: requests came when they were due."""
    images: int
    """Number of pictures of each request."""
    requests: int
    """Number of requests in the window."""
    requests_per_s: float
    """Of a closed loop those answered, else those due."""
    latency_s: NDArray[np.float64]
    """Latencies of the answers in the window."""
    thread_seconds: dict[int, float]
    """CPU seconds in the window of each thread of the servers."""
    window_s: float
    client_cpu_s: float
    """CPU seconds of the load generator in the window."""
    errors: int
    """Number of requests that were refused or got lost."""
    others_cores: float
    """Number of cores that other programs were given, or the machine's host took, on average over the window."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """One end of a window."""

    at: float
    threads: dict[int, float]
    """CPU seconds of each thread of the servers so far."""
    busy: float
    """Those of the whole machine."""


@dataclass
class MeasuredServers:
    """Servers of `recorded_server`, alike, that share out the requests."""

    processes: list[ServerProcess]
    target: Target
    """The first of them, as all are."""
    records: list[BatchRecord]
    cores: int
    """Number of cores that each may use."""
    stretches: list[Stretch] = field(default_factory=list)
    """Every load on them so far."""

    @property
    def request_bytes(self) -> int:
        """Size of a request of one picture."""
        return len(self._requests[0])

    def closed(self, concurrency: int, seconds: float, images: int = 1) -> Stretch:
        """Load them by `concurrency` callers; each asks for so many `images`, and again when it has its answer."""
        load = ClosedLoad(
            address=self._addresses,
            requests=self.target.requests(images, with_logits=False),
            burn_in_requests=self.target.requests(images, with_logits=True),
            concurrency=concurrency,
            seconds=seconds,
            burn_in_s=BURN_IN_S,
            transport=open_balanced_calls,
        )

        def run(edge: Callable[[], None]) -> tuple[ClosedResult, float]:
            result = run_closed_loop(load, edge)
            return result, result.requests_per_s

        return self._stretch(concurrency, run, images)

    def open(self, rate_per_s: float, seconds: float, seed: int) -> Stretch:
        """Load them with Poisson arrivals, those of `open_arrivals`."""
        load = OpenLoad(
            address=self._addresses,
            requests=self._requests,
            burn_in_requests=self.target.requests(1, with_logits=True),
            rate_per_s=rate_per_s,
            seconds=seconds,
            seed=seed,
            burn_in_s=BURN_IN_S,
            patience_s=PATIENCE_S,
            transport=open_balanced_calls,
        )

        def run(edge: Callable[[], None]) -> tuple[OpenResult, float]:
            result = run_open_loop(load, edge)
            return result, result.due / result.window_s

        return self._stretch(None, run)

    @property
    def _addresses(self) -> str:
        return ",".join(process.address for process in self.processes)

    @property
    def _requests(self) -> tuple[bytes, ...]:
        return self.target.requests(1, with_logits=False)

    def _stretch(
        self,
        concurrency: int | None,
        run: Callable[[Callable[[], None]], tuple[LoadResult, float]],
        images: int = 1,
    ) -> Stretch:
        edges: list[_Edge] = []
        start = time.monotonic()
        result, rate = run(lambda: edges.append(_Edge(time.monotonic(), self._thread_seconds(), busy_seconds())))
        for request, answer in result.answers:
            expected = self.target.expected[self.target.pictures_of(request, images)]
            self.target.protocol.check("the server", self.target.precision, answer, expected)
        before, after = edges
        seconds = after.at - before.at
        threads = {thread: total - before.threads.get(thread, 0.0) for thread, total in after.threads.items()}
        client_cpu_s = result.generator_cpu_share * seconds
        others_s = after.busy - before.busy - sum(threads.values()) - client_cpu_s
        stretch = Stretch(
            start=start,
            end=time.monotonic(),
            concurrency=concurrency,
            images=images,
            requests=round(rate * seconds),
            requests_per_s=rate,
            latency_s=result.answered_latency_s if isinstance(result, OpenResult) else result.latency_s,
            thread_seconds=threads,
            window_s=seconds,
            client_cpu_s=client_cpu_s,
            errors=result.errors.total(),
            others_cores=max(0.0, others_s) / seconds,
        )
        self.stretches.append(stretch)
        return stretch

    def _thread_seconds(self) -> dict[int, float]:
        """CPU seconds of each thread so far (Linux, Documentation/scheduler/sched-stats.rst)."""
        try:
            return {
                int(folder.name): int((folder / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
                for process in self.processes
                for folder in (_PROC / str(process.pid) / "task").iterdir()
            }
        except (OSError, IndexError, ValueError) as error:
            raise BackendError(
                "the CPU time of the server's threads can't be read; profiles are measured on Linux"
            ) from error


def busy_seconds() -> float:
    """CPU seconds that this machine's cores were not idle so far, of all programs and of its host (man 5 proc_stat)."""
    try:
        fields = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, interrupts, soft_interrupts, stolen = (int(field) for field in fields[:8])
    except (OSError, ValueError) as error:
        raise BackendError("/proc/stat can't be read; profiles are measured on Linux") from error
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


@contextmanager
def measured_servers(
    package: Path, *flags: str, count: int = 1, module: str = recorded_server.__name__
) -> Iterator[MeasuredServers]:
    """Serve `package` with the flags of `fuseline serve`, `count` times, each on its part of the cores.

    Raises:
        InputError: there are fewer cores than servers.
        BackendError: a server doesn't start.
    """
    if count > usable_cores():
        raise InputError(f"{count} servers on {usable_cores()} cores: each needs one of its own")
    with tempfile.TemporaryDirectory(prefix="fuseline-plan-") as folder, ExitStack() as stack:
        records = [BatchRecord(Path(folder) / f"batches-{number}") for number in range(count)]
        parts = _parts_of_cores(count)
        processes = []
        for record, cores in zip(records, parts, strict=True):
            variables = {recorded_server.RECORD_VARIABLE: str(record.path)}
            with _on_cores(cores):
                server = started_server(package, *flags, module=module, variables=variables)
                processes.append(stack.enter_context(server))
        target = connect(processes[0].address, processes[0].pid)
        yield MeasuredServers(processes, target, records, len(parts[0]))


def open_arrivals(rate_per_s: float, seconds: float, seed: int) -> tuple[NDArray[np.float64], int]:
    """Return when `MeasuredServers.open` sends its requests, in seconds from the burn-in's start.

    The number is that of the first ones, which belong to the burn-in.
    """
    burn_in = poisson_arrivals(rate_per_s, BURN_IN_S, seed + 1)
    return np.concatenate([burn_in, BURN_IN_S + poisson_arrivals(rate_per_s, seconds, seed)]), len(burn_in)


def _parts_of_cores(count: int) -> list[set[int]]:
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // count
    return [set(cores) if count == 1 else set(cores[n * size : (n + 1) * size]) for n in range(count)]


@contextmanager
def _on_cores(cores: Set[int]) -> Iterator[None]:
    """What this thread starts meanwhile runs on `cores`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
