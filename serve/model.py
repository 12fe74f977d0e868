"""One loaded model: its package, a warmed backend and the batcher that feeds it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.batching.admission import Ready, Reservation
from fuseline.serve.batching.batcher import BatchedRows, Batcher, BatchStats, Misses, Row
from fuseline.serve.batching.lane_recovery import Watch
from fuseline.serve.batching.latency_control import Decision
from fuseline.serve.batching.policy import DEFAULT_CPU_BATCHING, DEFAULT_MAX_BATCH, CpuBatching, buckets_up_to
from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.lanes.spare_lanes import SpareLanes
from fuseline.serve.lanes.warm_lanes import warm_lanes
from fuseline.serve.model_package import Manifest, ModelPackage, load_package
from fuseline.serve.model_settings import settings_of_model
from fuseline.serve.process.memory import release_freed_memory
from fuseline.serve.settings import Settings
from fuseline.serve.version_policy import VersionPolicy

_log = logging.getLogger(__name__)


class TracedRequest(Protocol):
    """A request whose spans this process makes: see `fuseline.serve.tracing.tracing.RequestTrace`."""

    @property
    def span_bytes(self) -> bytes:
        """See `RequestTrace.span_bytes`."""
        ...

    def batched(self, batches: bytes) -> None:
        """See `RequestTrace.batched`."""
        ...


class RowBatcher(Protocol):
    """What takes requests: a `fuseline.serve.batching.batcher.Batcher`, or its stand-in in another process."""

    @property
    def queued_rows(self) -> int:
        """Number of rows that wait for a batch."""
        ...

    @property
    def queued_requests(self) -> int:
        """Number of requests with rows that wait for a batch."""
        ...

    @property
    def bucket_seconds(self) -> Mapping[int, float]:
        """See `Batcher.bucket_seconds`."""
        ...

    @property
    def is_stalled(self) -> bool:
        """See `Batcher.is_stalled`."""
        ...

    @property
    def is_lost(self) -> bool:
        """See `Batcher.is_lost`."""
        ...

    @property
    def hung_calls(self) -> int:
        """See `Batcher.hung_calls`."""
        ...

    @property
    def backpressure(self) -> Literal["rows", "time"] | None:
        """See `Batcher.backpressure`."""
        ...

    def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        reservation: Reservation | None = None,
        caller: Caller = ANYONE,
        trace: TracedRequest | None = None,
    ) -> asyncio.Future[BatchedRows]:
        """See `Batcher.submit`; `trace` is the request's, where it is traced."""
        ...

    def reserve(
        self, row_count: int, *, deadline: float | None = None, ready: Ready, caller: Caller = ANYONE
    ) -> Reservation:
        """See `Batcher.reserve`."""
        ...

    async def drain(self) -> None:
        """See `Batcher.drain`."""
        ...


class Model:
    """A model that is ready: every bucket has run, and the backend agreed with the package's reference."""

    def __init__(
        self,
        package: ModelPackage,
        backend: BackendFacts,
        backend_reason: str,
        batcher: RowBatcher,
        lanes: LaneChoice,
        close_backend: Callable[[], None] | None = None,
    ) -> None:
        """Begin with a `batcher` that is open.

        `backend_reason` says why this backend was chosen, and `lanes` how many batches it computes side by side.
        `close_backend` is None if another process has the backend.
        """
        self.package = package
        self.manifest: Manifest = package.manifest
        """Manifest of the package."""
        self.name: str = package.manifest.name
        """Name under which requests find the model."""
        self.version: str = package.manifest.version
        """Version under which requests find the model."""
        self.row_shape = package.manifest.input.row_shape
        """Shape of one image as the batcher takes it: (height, width, channels), or (channels, height, width)."""
        self.pixel_shape = package.manifest.input.pixel_shape
        """Shape (height, width, channels) of one image's pixels, whatever the batcher takes."""
        self.row_dtype = package.manifest.input.row_dtype
        """Type of an image's elements."""
        self.datatype = package.manifest.input.datatype
        """That type's name in the Open Inference Protocol."""
        self.takes_pixels = not package.manifest.input.format.normalised
        """Whether the batcher takes pixels as they are; else they are normalised to floats first."""
        self.classes = package.manifest.classes
        """Number of classes that the model tells apart."""
        self.backend = backend
        self.backend_reason = backend_reason
        self.batcher = batcher
        self.lanes = lanes
        self.version_policy: VersionPolicy | None = None
        """Policy by which the model's versions are served; None: the command line names each one's package."""
        self._close_backend = close_backend

    @property
    def has_hung(self) -> bool:
        """Whether a call of the backend was given up in this process and has not returned."""
        return self.batcher.hung_calls > 0

    async def close(self) -> None:
        """Finish what was admitted, admit nothing more, and release the backend. Calling it again does nothing.

        A backend with a hung call is never released: it may be called no more.
        """
        await self.batcher.drain()
        if self._close_backend is not None and not self.has_hung:
            # Freeing a network's memory takes longer than other models' requests may wait.
            await asyncio.to_thread(self._close_backend)


class BatchCounts(Protocol):
    """What counts batches: `fuseline.serve.metrics.metrics.Metrics`, or one that passes them on to it."""

    def count_batch(self, model: str, stats: BatchStats, version: str = "") -> None:
        """Count one batch of that `version` of the model called `model`."""
        ...

    def count_decision(self, model: str, decision: Decision, version: str = "") -> None:
        """Count what `--latency-target` came to in one window."""
        ...

    def count_misses(self, model: str, misses: Misses, version: str = "") -> None:
        """Count by how much the predictions for one batch missed."""
        ...


def load_model(
    folder: Path,
    settings: Settings,
    counts: BatchCounts,
    *,
    name: str = "",
    version: str = "",
    beside: LaneChoice | None = None,
    cpu: CpuBatching = DEFAULT_CPU_BATCHING,
) -> Model:
    """Load the package in `folder`, open its backend, warm every bucket and compare it with the package's reference.

    The call blocks until then. `counts` counts every batch. Open assumptions of the package are logged. `name` and
    `version` are those under which requests find the model; empty: the manifest's. `beside` is the choice of a version
    that is served meanwhile (see `warm_lanes`). `cpu` says what makes batches good
    if the backend computes on the CPU.

    Raises:
        PackageError: `folder` is no package, or its model doesn't do what the manifest says.
        InputError: a setting of the model in its manifest breaks a rule.
        BackendUnavailableError: the asked-for backend can't run here.
        VerificationError: its answers on the package's reference images are not PyTorch's.
    """
    package = load_package(folder)
    name, version = name or package.manifest.name, version or package.manifest.version
    # Whatever tells of the model from now on, here or in other processes, tells what requests call it.
    package = package.model_copy(
        update={"manifest": package.manifest.model_copy(update={"name": name, "version": version})}
    )
    settings, spec = settings_of_model(settings, package.manifest), package.manifest.input
    open_it = partial(
        open_backend,
        package,
        buckets=buckets_up_to(settings.max_batch or DEFAULT_MAX_BATCH),
        cpu_buckets=cpu.buckets(spec.height * spec.width, settings.max_batch),
        precision=settings.precision,
        threads=settings.threads,
        engine_cache=settings.engine_cache_folder,
    )
    backend, reason = open_it(backend=settings.backend)
    # Opening lanes loads the network again, whose memory need not come on top of what the first load left.
    release_freed_memory()
    try:
        warmed = warm_lanes(backend, package, settings, cpu, beside=beside)
    except BaseException:
        backend.close()
        raise
    for assumption in package.manifest.open_assumptions:
        _log.warning("%s: %s", name, assumption.line)
    release_freed_memory()
    spares = SpareLanes(
        lambda: open_it(backend=backend.name)[0], package, lanes=len(warmed.lanes), buckets=warmed.policy.buckets
    )
    # A device on which a call hangs has others hang too.
    open_spare = spares.open if backend.device == "CPU" else None
    timeout_s = settings.backend_timeout_s
    batcher = Batcher(
        backend.infer,
        warmed.policy,
        row_shape=spec.row_shape,
        row_dtype=spec.row_dtype,
        lanes=warmed.lanes,
        seconds_per_bucket=warmed.seconds_per_bucket,
        alone_seconds_per_bucket=warmed.alone_seconds_per_bucket,
        on_batch=lambda stats: counts.count_batch(name, stats, version),
        on_misses=lambda misses: counts.count_misses(name, misses, version),
        on_decision=partial(_note_decision, counts, name, version, settings.latency_target),
        watch=Watch(timeout_s, open_spare) if timeout_s else None,
    )

    def close() -> None:
        spares.close()
        # A backend in which a call hangs may hang as well when it is closed.
        if not batcher.hung_calls:
            backend.close()

    facts = BackendFacts.model_validate(backend).model_copy(update={"buckets": warmed.policy.buckets})
    return Model(package, facts, reason, batcher, warmed.choice, close)


def _note_decision(counts: BatchCounts, name: str, version: str, target_ms: float | None, decision: Decision) -> None:
    counts.count_decision(name, decision, version)
    if decision.is_impossible:
        _log.warning(
            "%s: 99 %% of the requests take up to %.1f ms, whatever the batches are, which is above --latency-target "
            "%gms; it is served as well as it can be",
            name,
            1000 * decision.latency_seconds,
            target_ms,
        )
