"""One model behind every contender that a case needs, ready to be put under load."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import contender_of
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import becomes_idle, cpu_seconds
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.harness.pictures import as_jpegs, generated_pictures
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.benchmarks.harness.subject import Subject, open_subject
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.load.closed_loop import ClosedLoad, run_closed_loop
from fuseline.benchmarks.load.load import LoadResult
from fuseline.benchmarks.load.open_loop import OpenLoad, run_open_loop
from fuseline.benchmarks.load.protocols import RawBytes, WireProtocol
from fuseline.benchmarks.peers.cases import (
    CONCURRENCY,
    CONTENDERS,
    JPEG_SHAPE,
    PEER_SERVERS,
    QUEUE_TIMEOUT_MS,
    SAME_ENGINE,
    Case,
    Contender,
    OverloadCase,
)
from fuseline.benchmarks.peers.cpu_limit import measure_cpu_limit
from fuseline.benchmarks.peers.overload import REFUSALS, OverloadRound, OverloadStretch, overload_stretch
from fuseline.benchmarks.peers.processes import Server, busy_neighbour, started_peer
from fuseline.benchmarks.peers.requests import PICTURES, images_of, method_of, pictures_of, transport_of, wire_of
from fuseline.benchmarks.peers.rounds import Stretch
from fuseline.serve.backends.onnx_artifact import onnx_artifact
from fuseline.serve.batching.policy import DEFAULT_CPU_BATCHING
from fuseline.serve.errors import BackendError, BackendUnavailableError, VerificationError
from fuseline.serve.images import decode_for

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
class PeerModel:
    """A model, and where it is served. Everything runs throughout and sleeps unless it is measured."""

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
        with neighbour():
            result = run_closed_loop(load, watch)
        self._check(name, case, wire, result)
        return _stretch(result, result.requests_per_s, images_of(CONTENDERS[name], case), watch)

    def measure_open(self, name: str, case: Case, seconds: float, *, rate_per_s: float, seed: int) -> Stretch:
        """Measure as `measure_closed`, with Poisson arrivals; longer than `seconds` where that is too few for a p99."""
        watch = _CpuWatch(self.servers[name].pid)
        wire, load = self._open_load(name, case, seconds, rate_per_s=rate_per_s, seed=seed)
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
            capacity = run_closed_loop(closed_load)
            _, open_load = self._open_load(
                name,
                case,
                seconds,
                rate_per_s=load * capacity.requests_per_s,
                seed=seed,
                queue_timeout_ms=QUEUE_TIMEOUT_MS.get(name, 0.0),
            )
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
            address=self.servers[name].address,
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
            address=self.servers[name].address,
            requests=requests,
            burn_in_requests=burn_in,
            rate_per_s=rate_per_s,
            seconds=max(seconds, _MIN_OPEN_REQUESTS / rate_per_s),
            seed=seed,
            method=method_of(contender, wire),
            transport=transport_of(wire),
            max_under_way=_MAX_CONNECTIONS if isinstance(wire, RawBytes) else None,
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
        wire = wire_of(contender, case, queue_timeout_ms)
        chosen = [pictures_of(index, contender, case) for index in range(PICTURES)]
        pictures = [[self.files[number] for number in each] if self.files else self.pixels[each] for each in chosen]
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
        if contender.server == "echo":
            return []
        expected = self.expected.get(name, self.expected["fuseline"])
        wrong = []
        for index, answer in result.answers:
            rows = expected[pictures_of(index, contender, case)]
            try:
                wire.check(contender.title, contender.precision, answer, rows)
            except VerificationError as error:
                wrong.append(error)
        return wrong


@contextmanager
def served_model(case: Case, names: Collection[str], echo: Server, folder: Path) -> Iterator[PeerModel]:
    """Start the model of `case` behind each of the contenders `names`, and bare; end them afterwards.

    Raises:
        FuselineError: one of them can't be started, or gives other logits than the bare backend.
    """
    with ExitStack() as stack:
        if case.network:
            int8 = any(CONTENDERS[name].precision == "int8" for name in names)
            subject, threads = stack.enter_context(open_subject(case.network, int8=int8)), 0
        else:
            package_folder = write_tiny_package(folder / str(case.side), side=case.side, classes=case.classes)
            subject, threads = Subject("tiny", package_folder, None), 1
        spec = subject.package.manifest.input
        files = as_jpegs(generated_pictures(JPEG_SHAPE, CONCURRENCY)) if case.jpeg else ()
        pixels = generated_pictures(spec.pixel_shape, CONCURRENCY)
        if files:
            pixels = np.stack([decode_for(spec, file) for file in files])
        bare = stack.enter_context(EngineProcess(SAME_ENGINE, subject, threads))
        expected = {"fuseline": bare.logits(pixels)}
        servers, cpu_limits, left_out = {}, {}, {}
        for name in names:
            contender = CONTENDERS[name]
            if contender.server == "echo":
                servers[name] = echo
            if contender.server not in ("fuseline", "cpu-limit"):
                continue
            checked = _checked_engine(contender, subject, threads, pixels, expected["fuseline"])
            try:
                if contender.server == "cpu-limit":
                    cpu_limits[name] = partial(measure_cpu_limit, stack.enter_context(checked), pixels, files, spec)
                    continue
                if name not in expected:
                    with checked as engine:
                        expected[name] = engine.logits(pixels)
            except BackendUnavailableError as error:
                left_out[name] = f"{contender.title} is left out: {error}"
                continue
            flags = ("--backend", contender.backend, "--precision", contender.precision, "--threads", str(threads))
            process = stack.enter_context(started_server(subject.package_folder, *flags, *contender.flags))
            servers[name] = Server(process.address, process.pid)
        graph = _graph(subject)
        resize = spec.preprocessing.resize_shorter_side if case.jpeg else 0
        for peer_server in PEER_SERVERS:
            if alike := [name for name in names if CONTENDERS[name].server == peer_server]:
                peer = started_peer(peer_server, graph, threads=threads, folder=folder, resize=resize)
                server = stack.enter_context(peer)
                servers |= dict.fromkeys(alike, server)
        yield PeerModel(servers, bare, pixels, expected, left_out, files, cpu_limits)


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


@contextmanager
def _checked_engine(
    contender: Contender, subject: Subject, threads: int, pixels: NDArray[np.uint8], same: NDArray[np.float32]
) -> Iterator[EngineProcess]:
    """The engine of `contender`, its logits held against the logits `same` of the engine that the others run."""
    with EngineProcess(contender_of(contender.backend, contender.precision), subject, threads) as engine:
        check_logits(f"bare {engine.name}", contender.precision, engine.logits(pixels), same)
        yield engine


def _graph(subject: Subject) -> Path:
    """The very file that Fuseline's ONNX Runtime loads."""
    package = subject.package
    return package.checked_path(onnx_artifact(package, "fp32", reader="cpu"))
