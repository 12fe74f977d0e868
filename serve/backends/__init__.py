"""Chooses and opens a backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# This import comes first, before that of any runtime.
from fuseline.serve.backends import no_telemetry  # noqa: F401  # isort: skip
from fuseline.serve.backends.base import Backend, OpenRequest
from fuseline.serve.backends.registry import BACKENDS, REGISTRY, why_not_installed, why_not_rounding
from fuseline.serve.errors import BackendError, BackendUnavailableError, VerificationError
from fuseline.serve.model_package import ModelPackage

__all__ = ["BACKENDS", "Judgement", "judge_backends", "open_backend", "why_not_installed"]


def open_backend(
    package: ModelPackage,
    *,
    backend: str = "auto",
    precision: str = "auto",
    buckets: Sequence[int],
    cpu_buckets: Sequence[int] | None = None,
    threads: int = 0,
    engine_cache: Path | None = None,
) -> tuple[Backend, str]:
    """Load `package` into a runtime; return the backend and, for people, why it was chosen.

    Args:
        backend: one of `BACKENDS`, or `auto` for the first of `REGISTRY` that opens.
        precision: `fp32`, `fp16`, `bf16`, `int8`, or `auto`. Where the export was asked for half precision, `auto` is
            FP16 on a GPU and BF16 on a CPU that computes in it, and else FP32. On CPUs both runtimes compute an FP16
            graph in FP32, which gains nothing; INT8 is never chosen unasked.
        buckets: batch sizes in rows to prepare for.
        cpu_buckets: batch sizes for a backend that computes on the CPU; None: `buckets`.
        threads: CPU threads of the runtime; 0 leaves it to the runtime.
        engine_cache: folder for the TensorRT engines that are built here because none in the package fits, which takes
            seconds to minutes; None: none is built.

    Raises:
        BackendUnavailableError: the asked-for backend can't run here, or none can; the message says what to install.
        PackageError: the artifact is missing or damaged.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(f"there is no backend {backend!r}; choose auto, {', '.join(BACKENDS)}")
    entries = [entry for entry in REGISTRY if backend in ("auto", entry.name)]
    refusals: list[str] = []
    for entry in entries:
        sizes = cpu_buckets if entry.device == "cpu" and cpu_buckets is not None else buckets
        request = OpenRequest(entry.device, tuple(sorted(sizes)), precision, threads, engine_cache)
        try:
            if (reason := why_not_rounding(entry, precision)) is not None:
                raise BackendUnavailableError(reason)
            opened = entry.load().open(package, request)
        except (BackendUnavailableError, BackendError, VerificationError) as error:
            if backend != "auto" and entry is entries[-1]:
                raise
            refusals.append(f"{entry.title}: {error}")
            continue
        why = entry.merit if backend == "auto" else f"--backend {backend} was given"
        return opened, f"{why} ({'; '.join(refusals)})" if refusals else why
    raise BackendUnavailableError(f"no runtime can serve: {'; '.join(refusals)}")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judgement of `open_backend` about one backend."""

    backend: str
    title: str
    reason: str | None
    """Reason why the backend would be passed over; None: it would be tried."""
    merit: str
    """Reason why the backend would be chosen."""


def judge_backends(
    package: ModelPackage | None,
    *,
    buckets: Sequence[int],
    precision: str = "auto",
    engine_cache: Path | None = None,
) -> tuple[Judgement, ...]:
    """Judge the backends of `auto`, best first, as `open_backend` with these arguments; nothing is loaded or built.

    The first without a reason is the choice, unless it fails when it is opened. None for `package` judges the machine.
    """
    judgements = []
    for entry in REGISTRY:
        request = OpenRequest(entry.device, tuple(sorted(buckets)), precision, engine_cache=engine_cache)
        reason = why_not_rounding(entry, precision) or entry.load().why_unavailable(package, request)
        judgements.append(Judgement(entry.name, entry.title, reason, entry.merit))
    return tuple(judgements)
