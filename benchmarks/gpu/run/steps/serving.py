"""Step 5: the package served over gRPC on this machine, beside the bare backend in the same run."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.gpu.run.job import Emit, Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row, failure_row
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.load.protocols import Classify
from fuseline.benchmarks.load.target import Target, connect, expect_logits_of
from fuseline.benchmarks.serving.measure import measure_serving
from fuseline.serve.batching.policy import DEFAULT_MAX_BATCH
from fuseline.serve.errors import BackendError, FuselineError

_BURN_IN_S = 1.0
_WAVES = 4
"""Answers to all callers that a measurement covers at least, going by the bare backend; a fast one has hundreds."""
START_S = 10.0
"""A load's processes take some seconds, a server some more."""
_CORES_OF_A_GENERATOR = 4
"""Cores of the machine for each process of the load generator: one sends some thousand requests a second."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load on a server."""

    callers: int
    images: int = 1
    is_stream: bool = False

    @property
    def title(self) -> str:
        """`Classify, 16 images, 64 callers`."""
        call = "ClassifyStream" if self.is_stream else "Classify"
        return f"{call}, {self.images} image{'s' if self.images > 1 else ''}, {self.callers} callers"

    @property
    def is_plain(self) -> bool:
        """Whether each request has one image and a call of its own."""
        return self.images == 1 and not self.is_stream


def run(job: Job, emit: Emit) -> None:
    """The bare backend, then for each number of workers a server with every load, most telling first.

    It has the number of lanes that it chooses itself. The first of the job's fixed numbers comes after it, with the
    requests of one image alone.
    """
    if "package" not in job.found or "backend" not in job.found:
        raise NotHereError("the package step left no package with a backend that answers rightly")
    backend = str(job.found["backend"])
    subject = Subject("served", Path(job.found["package"]), None)
    with EngineProcess(backend, subject) as bare:
        if job.plan.device == "cuda" and bare.device == "CPU":
            raise NotHereError(f"{backend} computes on the CPU here, not on the GPU")
        bare_images_per_s = _bare(job, emit, bare, subject, "at the start")
        cores = usable_cores()
        for workers, lanes in itertools.product(job.plan.workers, (None, *job.plan.lanes[:1])):
            flags = ("--workers", str(workers), *lanes_flags(lanes))
            if workers > cores:
                emit(Row(what=" ".join(flags), status="dropped", reason=f"there are {cores} cores"))
            elif job.left_s < START_S + job.plan.seconds:
                emit(Row(what=" ".join(flags), status="dropped", reason="no time was left"))
            else:
                each = [load for load in loads(job) if lanes is None or load.is_plain]
                _served(job, emit, backend, flags, each, subject, bare_images_per_s)
        if job.left_s > job.plan.seconds + _BURN_IN_S:
            _bare(job, emit, bare, subject, "at the end")


def loads(job: Job) -> Iterator[Load]:
    """Yield the loads in their order. However large a request is, no more images are under way."""
    for callers in job.plan.callers:
        yield Load(callers)
    most = max(job.plan.callers)
    yield Load(most, is_stream=True)
    for images in job.plan.images:
        yield Load(max(1, most // images), images)


def lanes_flags(lanes: int | None) -> tuple[str, ...]:
    """Return the flags of a server with `lanes` lanes; None: as many as it chooses."""
    return () if lanes is None else ("--lanes", str(lanes))


def _bare(job: Job, emit: Emit, bare: EngineProcess, subject: Subject, when: str) -> float:
    """Images a second of the backend alone, at the largest batch that a server forms."""
    batch = DEFAULT_MAX_BATCH
    pixels = generated_pictures(subject.package.manifest.input.pixel_shape, batch)
    stretch = bare.measure(pixels, job.plan.seconds)
    emit(
        Row(
            what=f"bare {bare.name} {bare.precision}, batch {batch}, {when}",
            figures={"images/s": stretch.images_per_s, "device": bare.device},
        )
    )
    return stretch.images_per_s


def _served(
    job: Job,
    emit: Emit,
    backend: str,
    flags: Sequence[str],
    loads: Sequence[Load],
    subject: Subject,
    bare_images_per_s: float,
) -> None:
    title = " ".join(flags)
    try:
        with started_server(subject.package_folder, "--backend", backend, *flags) as server:
            emit(Row(what=f"{title}: ready", figures={"s": server.ready_s}))
            print(server.announcement)
            target = _target(job, server, subject)
            for load in loads:
                what = f"{title}: {load.title}"
                wave_s = load.callers * load.images / bare_images_per_s
                seconds = max(job.plan.seconds, _WAVES * wave_s)
                # Two waves come and go before it is timed, and one after.
                if job.left_s < seconds + 3 * wave_s + 2 * _BURN_IN_S:
                    emit(Row(what=what, status="dropped", reason=f"it takes {seconds:.0f} s, and no time was left"))
                else:
                    emit(measured(what, target, load, seconds, bare_images_per_s))
    except FuselineError as error:
        emit(failure_row(title, error))


def _target(job: Job, server: ServerProcess, subject: Subject) -> Target:
    if job.plan.device == "cuda" and " on CPU, " in server.announcement:
        raise BackendError(f"the server computes on the CPU: {server.announcement}")
    return expect_logits_of(subject, connect(server.address, server.pid))


def measured(what: str, target: Target, load: Load, seconds: float, bare_images_per_s: float | None) -> Row:
    """Measure `load` on `target` for `seconds`, beside what the bare backend computed, if that is known."""
    try:
        figures = measure_serving(
            replace(target, protocol=Classify(is_stream=load.is_stream)),
            concurrency=load.callers,
            seconds=seconds,
            burn_in_s=_BURN_IN_S,
            images_per_request=load.images,
            processes=max(1, min(load.callers, usable_cores() // _CORES_OF_A_GENERATOR)),
            streams=1,
        )
    except FuselineError as error:
        return failure_row(what, error)
    cpu_ms = figures.server_cpu_ms_per_request
    reasons = []
    if figures.generator_was_busy:
        reasons.append(f"the load generator used {figures.generator_cpu_share:.0%} of a core and limits this")
    if figures.errors:
        reasons.append(f"refused: {', '.join(f'{count} {status}' for status, count in figures.errors.items())}")
    return Row(
        what=what,
        reason="; ".join(reasons) or None,
        figures={
            "images/s": figures.images_per_s,
            "of bare": None if bare_images_per_s is None else figures.images_per_s / bare_images_per_s,
            "p50 ms": figures.latency_ms["p50"],
            "p99 ms": figures.latency_ms["p99"],
            "server CPU ms an image": None if cpu_ms is None else cpu_ms / load.images,
        },
        details=asdict(figures) | {"latency_histogram": None},
    )
