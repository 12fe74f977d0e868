"""One model behind every contender that a case needs, ready to be put under load."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.cpu_time import becomes_idle, cpu_seconds
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.load.load import LoadResult
from fuseline.benchmarks.load.open_loop import OpenLoad, run_open_loop
from fuseline.benchmarks.load.protocols import WireProtocol
from fuseline.benchmarks.peers.cases import (
    CONTENDERS,
    PEER_SERVERS,
    QUEUE_TIMEOUT_MS,
    Case,
    Contender,
    OverloadCase,
)
from fuseline.benchmarks.peers.overload import REFUSALS, OverloadRound, OverloadStretch, overload_stretch
from fuseline.benchmarks.peers.processes import ECHOES, Server, busy_neighbour
from fuseline.benchmarks.peers.requests import (
    PICTURES,
    address_of,
    images_of,
    is_http,
    made_known,
    method_of,
    pictures_of,
    transport_of,
    wire_of,
)
from fuseline.benchmarks.peers.rounds import Stretch
from fuseline.serve.batching.policy import DEFAULT_CPU_BATCHING
from fuseline.serve.errors import BackendError, VerificationError

_MIN_OPEN_REQUESTS = 300
"""The p99 of fewer is hardly more than their maximum."""
_MAX_CONNECTIONS = 900
"""Each HTTP request under way has one, and the open loop's select(2) knows files below 1024 only."""
_COOL_DOWN_DEADLINES = 2
"""How long an overload goes on after its window, so that the last of the window has as little room as the others."""
_MOST_WRONG = 0.05
"""Largest share of a peer's answers under overload. Triton, with calls cancelled, gave one request another's logits."""
_IDLE_PATIENCE_S = 120.0
"""Mosec computes what nobody waits for any more, up to 1,024 requests."""


@dataclass(frozen=True, slots=True)
class OwnModel:
    """The model of a contender whose pictures have a side of their own."""

    name: str
    pixels: NDArray[np.uint8]
    """(rows, height, width, channels)."""
    logits: NDArray[np.float32]
    """(rows, classes), by the bare backend."""


@dataclass(frozen=True, slots=True)
class PeerModel:
    """A model, and where it is served. Everything runs throughout and sleeps unless it is measured."""

    name: str
    """What Fuseline calls it."""
    servers: dict[str, Server]
    """Server of each contender that has one."""
    bare: EngineProcess
    pixels: NDArray[np.uint8]
    """(rows, height, width, channels); servers are sent the first few."""
    expected: dict[str, NDArray[np.float32]]
    """Logits of `pixels`, (rows, classes), for each of Fuseline's contenders, by its bare backend."""
    left_out: dict[str, str]
    """Each of Fuseline's contenders that can't run here, and why."""
    files: tuple[bytes, ...] = ()
    """JPEGs that `pixels` were decoded from; empty where pixels are sent."""
    cpu_limits: Mapping[str, Callable[[float], Stretch]] = field(default_factory=dict)
    """Contender that is a CPU limit to what measures it for so many seconds."""
    own: Mapping[str, OwnModel] = field(default_factory=dict)
    """Contender to the model that it has instead."""

    def measure_closed(self, name: str, case: Case, seconds: float) -> Stretch:
        """Put the contender `name` under the load of `case` for `seconds`, its answers checked.

        Raises:
            VerificationError: an answer is wrong.
            BackendError: a server failed, or a request did.
        """
        neighbour = busy_neighbour if case.busy else nullcontext
        if CONTENDERS[name].server == "bare":
            return self._measure_bare(case, seconds)
        if CONTENDERS[name].server == "bare-lanes":
            with neighbour():
                return self._measure_bare_lanes(seconds)
        if name in self.cpu_limits:
            return self.cpu_limits[name](seconds)
        watch = _CpuWatch(self.servers[name].pid)
        wire, load = self._closed_load(name, case, seconds)
        with neighbour(), made_known(wire, self.servers[name]):
            result = run_closed_loop(load, watch)
        self._check(name, case, wire, result)
        return _stretch(result, result.requests_per_s, images_of(CONTENDERS[name], case), watch)

    def measure_open(self, name: str, case: Case, seconds: float, *, rate_per_s: float, seed: int) -> Stretch:
        """Measure as `measure_closed`, with Poisson arrivals; longer than `seconds` where that is too few for a p99."""
        watch = _CpuWatch(self.servers[name].pid)
        wire, load = self._open_load(name, case, seconds, rate_per_s=rate_per_s, seed=seed)
        with made_known(wire, self.servers[name]):
            result = run_open_loop(load, watch)
        self._check(name, case, wire, result)
        answered_per_s = result.answered / result.window_s
        return _stretch(result, answered_per_s, images_of(CONTENDERS[name], case), watch, offered_per_s=rate_per_s)

    def measure_overload(self, name: str, case: OverloadCase, seconds: float, *, seed: int) -> OverloadRound:
        """Offer the contender `name` each load of `case`, a multiple of what `measure_closed` finds just before it.

        Each stretch lasts `seconds`, or longer as in `measure_open`, and the next begins when the server has done with
        this one. Refusals count, in the closed loop too, where a queue policy may reject. So do a peer's wrong answers,
        if they are few.

        Raises:
            VerificationError: an answer of Fuseline's is wrong, or over a twentieth of a peer's.
            BackendError: a server failed, a request did otherwise than by one of `REFUSALS`, or the server didn't come
                to rest.
        """
        stretches: list[OverloadStretch] = []
        wrong: list[VerificationError] = []
        checked = 0
        for load in case.loads:
            wire, closed_load = self._closed_load(name, case, seconds)
            with made_known(wire, self.servers[name]):
                capacity = run_closed_loop(closed_load)
            wire, open_load = self._open_load(
                name,
                case,
                seconds,
                rate_per_s=load * capacity.requests_per_s,
                seed=seed,
                queue_timeout_ms=QUEUE_TIMEOUT_MS.get(name, 0.0),
            )
            with made_known(wire, self.servers[name]):
                result = run_open_loop(_within_deadline(open_load, case.deadline_ms / 1e3))
            if not becomes_idle(self.servers[name].pid, _IDLE_PATIENCE_S):
                raise BackendError(f"{CONTENDERS[name].title} was still busy {_IDLE_PATIENCE_S:g} s after its load")
            for each in (capacity, result):
                self._check_errors(name, each, REFUSALS)
                checked += len(each.answers)
                wrong += self._wrong_answers(name, case, wire, each)
            stretches.append(overload_stretch(capacity, result, load=load, deadline_ms=case.deadline_ms))
        if wrong and (CONTENDERS[name].server not in PEER_SERVERS or len(wrong) > _MOST_WRONG * checked):
            raise wrong[0]
        return OverloadRound(tuple(stretches), checked, len(wrong))

    def _closed_load(self, name: str, case: Case, seconds: float) -> tuple[WireProtocol, ClosedLoad]:
        contender, wire, requests, burn_in = self._requests(name, case)
        return wire, ClosedLoad(
            address=address_of(self.servers[name], wire),
            requests=requests,
            burn_in_requests=burn_in,
            concurrency=case.concurrency,
            seconds=seconds,
            method=method_of(contender, wire),
            streams=int(wire.is_stream),
            transport=transport_of(wire),
        )

    def _open_load(
        self, name: str, case: Case, seconds: float, *, rate_per_s: float, seed: int, queue_timeout_ms: float = 0.0
    ) -> tuple[WireProtocol, OpenLoad]:
        contender, wire, requests, burn_in = self._requests(name, case, queue_timeout_ms)
        return wire, OpenLoad(
            address=address_of(self.servers[name], wire),
            requests=requests,
            burn_in_requests=burn_in,
            rate_per_s=rate_per_s,
            seconds=max(seconds, _MIN_OPEN_REQUESTS / rate_per_s),
            seed=seed,
            method=method_of(contender, wire),
            transport=transport_of(wire),
            max_under_way=_MAX_CONNECTIONS if is_http(wire) else None,
        )

    def _measure_bare(self, case: Case, seconds: float) -> Stretch:
        """One image where requests come alone, else as many as a batch takes at most."""
        rows = 1 if case.concurrency == 1 else len(self.pixels)
        # Calls of the tiny model are so short that a part of the time has thousands.
        calls_s = self.bare.measure(self.pixels[:rows], seconds if case.network else seconds / 4).call_s
        p50_s, p99_s = np.quantile(calls_s, (0.5, 0.99)).tolist()
        return Stretch(1 / p50_s, rows / p50_s, 1e3 * p50_s, 1e3 * p99_s)

    def _measure_bare_lanes(self, seconds: float) -> Stretch:
        """A lane for each core, each with as many images as Fuseline's lanes take at most."""
        row_pixels = self.pixels.shape[1] * self.pixels.shape[2]
        rows = DEFAULT_CPU_BATCHING.lane_buckets(row_pixels, 1)[-1]
        calls = self.bare.measure(self.pixels[:rows], seconds, lanes=usable_cores())
        p50_s, p99_s = np.quantile(calls.call_s, (0.5, 0.99)).tolist()
        return Stretch(calls.images_per_s / rows, calls.images_per_s, 1e3 * p50_s, 1e3 * p99_s)

    def _requests(
        self, name: str, case: Case, queue_timeout_ms: float = 0.0
    ) -> tuple[Contender, WireProtocol, tuple[bytes, ...], tuple[bytes, ...]]:
        """Who, in what protocol, what is sent while the clock runs, and what before."""
        contender = CONTENDERS[name]
        own = self.own.get(name)
        wire = wire_of(contender, case, self.name if own is None else own.name, queue_timeout_ms)
        chosen = [pictures_of(index, contender, case) for index in range(PICTURES)]
        pixels = self.pixels if own is None else own.pixels
        pictures = [[self.files[number] for number in each] if self.files else pixels[each] for each in chosen]
        timed, burn_in = (
            tuple(wire.request(each, with_logits=with_logits) for each in pictures) for with_logits in (False, True)
        )
        return contender, wire, timed, burn_in

    def _check(self, name: str, case: Case, wire: WireProtocol, result: LoadResult) -> None:
        self._check_errors(name, result)
        if wrong := self._wrong_answers(name, case, wire, result):
            raise wrong[0]

    def _check_errors(self, name: str, result: LoadResult, refusals: Collection[str] = ()) -> None:
        if not result.errors.keys() <= set(refusals):
            raise BackendError(f"requests to {CONTENDERS[name].title} failed: {dict(result.errors)}")

    def _wrong_answers(self, name: str, case: Case, wire: WireProtocol, result: LoadResult) -> list[VerificationError]:
        contender = CONTENDERS[name]
        if contender.server in ECHOES:
            return []
        own = self.own.get(name)
        expected = self.expected.get(name, self.expected["fuseline"]) if own is None else own.logits
        wrong = []
        for index, answer in result.answers:
            rows = expected[pictures_of(index, contender, case)]
            try:
                wire.check(contender.title, contender.precision, answer, rows)
            except VerificationError as error:
                wrong.append(error)
        return wrong


class _CpuWatch:
    """Reads the clock and the CPU time of a server, its descendants included, at both edges of a window."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._edges: list[tuple[float, float]] = []

    def __call__(self) -> None:
        """Read them now."""
        cpu_s = cpu_seconds(self._pid)
        if cpu_s is None:
            raise BackendError(f"the server's process {self._pid} is gone, or its CPU time can't be read")
        self._edges.append((time.monotonic(), cpu_s))

    @property
    def cores(self) -> float:
        """CPU seconds a second between the two edges."""
        (start_s, before_s), (end_s, after_s) = self._edges
        return (after_s - before_s) / (end_s - start_s)


def _within_deadline(load: OpenLoad, deadline_s: float) -> OpenLoad:
    """The same, with a deadline sent with each call, and nobody need be answered."""
    return dataclasses.replace(
        load, timeout_s=deadline_s, cool_down_s=_COOL_DOWN_DEADLINES * deadline_s, least_answers=0
    )


def _stretch(
    result: LoadResult,
    requests_per_s: float,
    images: int,
    watch: _CpuWatch,
    offered_per_s: float | None = None,
) -> Stretch:
    p50_s, p99_s = np.quantile(result.latency_s, (0.5, 0.99)).tolist()
    return Stretch(
        requests_per_s=requests_per_s,
        images_per_s=images * requests_per_s,
        p50_ms=1e3 * p50_s,
        p99_ms=1e3 * p99_s,
        server_cpu_ms_per_request=1e3 * watch.cores / requests_per_s,
        generator_cpu_share=result.generator_cpu_share,
        offered_per_s=offered_per_s,
    )
