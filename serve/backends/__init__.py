"""Choosing and opening a backend."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# First, before a runtime is imported.
from fuseline.serve.backends import no_telemetry  # noqa: F401  # isort: skip
from fuseline.serve.backends.base import Backend
from fuseline.serve.backends.onnx_artifact import Reader, onnx_artifact
from fuseline.serve.errors import BackendError, BackendUnavailableError, VerificationError
from fuseline.serve.model_package import ModelPackage

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32)
"""What engines are built for and servers batch to, unless told otherwise."""


def open_backend(
    package: ModelPackage,
    *,
    backend: str = "auto",
    precision: str = "auto",
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    threads: int = 0,
    engine_cache: Path | None = None,
) -> tuple[Backend, str]:
    """Load `package` into a runtime; return the backend and, for people, why it was chosen.

    Args:
        backend: one of `BACKENDS`, or `auto`: TensorRT where a GPU is and an engine that fits it is here or can
            be built, ONNX Runtime with CUDA where a GPU is, OpenVINO, ONNX Runtime on the CPU: the first that opens.
        precision: `fp32`, `fp16`, `int8`, or `auto`: FP16 on a GPU where the package has it, else FP32. On CPUs both
            runtimes compute an FP16 graph in FP32, which gains nothing; INT8 is never chosen unasked.
        buckets: batch sizes in rows to prepare for, ascending.
        threads: CPU threads of the runtime; 0 leaves it to the runtime.
        engine_cache: folder in which TensorRT engines are kept that are built here because none of the package's fits,
            which takes seconds to minutes; None: none is built.

    Raises:
        BackendUnavailableError: the asked-for backend can't run here, or none can; the message says what to install.
        PackageError: the artifact is missing or damaged.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(f"there is no backend {backend!r}; choose auto, {', '.join(BACKENDS)}")
    candidates = [candidate for candidate in _CANDIDATES if backend in ("auto", candidate.name)]
    refusals: list[str] = []
    for candidate in candidates:
        try:
            opened = candidate.open(package, precision, tuple(sorted(buckets)), threads, engine_cache)
        except (BackendUnavailableError, BackendError, VerificationError) as error:
            if backend != "auto" and candidate is candidates[-1]:
                raise
            refusals.append(f"{candidate.title}: {error}")
            continue
        why = candidate.merit if backend == "auto" else f"--backend {backend} was given"
        return opened, f"{why} ({'; '.join(refusals)})" if refusals else why
    raise BackendUnavailableError(f"no runtime can serve: {'; '.join(refusals)}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `open_backend` would make of one candidate."""

    backend: str
    title: str
    reason: str | None
    """Why it would be passed over; None: it would be tried."""
    merit: str
    """Why it would be chosen."""


def judge_backends(
    package: ModelPackage | None, *, precision: str = "auto", buckets: Sequence[int] = DEFAULT_BUCKETS
) -> tuple[Verdict, ...]:
    """Judge the candidates of `auto`, best first, as `open_backend` of a server would; nothing is loaded or built.

    The first without a reason is the choice, unless it fails when it is opened. None for `package` judges the machine.
    """
    sizes = tuple(sorted(buckets))
    return tuple(
        Verdict(candidate.name, candidate.title, candidate.why_unavailable(package, precision, sizes), candidate.merit)
        for candidate in _CANDIDATES
    )


def why_not_installed(backend: str) -> str | None:
    """None if the package behind `backend` can be imported, else one sentence that says what to install."""
    if backend == "onnxruntime" and importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'fuseline[cpu]'"
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'fuseline[cpu]'"
    return None


def _open_tensorrt(
    package: ModelPackage,
    precision: str,
    buckets: tuple[int, ...],
    threads: int,  # noqa: ARG001
    engine_cache: Path | None,
) -> Backend:
    from fuseline.serve.backends.tensorrt import open_tensorrt

    return open_tensorrt(package, precision=precision, buckets=buckets, engine_cache=engine_cache)


def _why_no_tensorrt(package: ModelPackage | None, precision: str, buckets: tuple[int, ...]) -> str | None:
    from fuseline.serve.backends.tensorrt import why_unavailable

    return why_unavailable(package, precision=precision, buckets=buckets, may_build=True)


def _open_onnxruntime(
    package: ModelPackage,
    precision: str,
    buckets: tuple[int, ...],
    threads: int,
    engine_cache: Path | None,  # noqa: ARG001
    *,
    cuda: bool,
) -> Backend:
    _check_installed("onnxruntime")
    from fuseline.serve.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(package, precision=precision, buckets=buckets, threads=threads, cuda=cuda)


def _why_no_onnxruntime(
    package: ModelPackage | None,
    precision: str,
    buckets: tuple[int, ...],  # noqa: ARG001
    *,
    cuda: bool,
) -> str | None:
    if (reason := why_not_installed("onnxruntime")) is not None:
        return reason
    if cuda:
        from fuseline.serve.backends.onnxruntime import why_no_cuda

        if (reason := why_no_cuda(precision)) is not None:
            return reason
    return _why_no_graph(package, precision, reader="cuda" if cuda else "cpu")


def _open_openvino(
    package: ModelPackage,
    precision: str,
    buckets: tuple[int, ...],
    threads: int,
    engine_cache: Path | None,  # noqa: ARG001
) -> Backend:
    _check_installed("openvino")
    from fuseline.serve.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(package, precision=precision, buckets=buckets, threads=threads)


def _why_no_openvino(package: ModelPackage | None, precision: str, buckets: tuple[int, ...]) -> str | None:  # noqa: ARG001
    from fuseline.serve.backends.openvino import why_no_openvino

    reason = why_not_installed("openvino") or why_no_openvino(precision)
    return reason or _why_no_graph(package, precision, reader="cpu")


def _why_no_graph(package: ModelPackage | None, precision: str, *, reader: Reader) -> str | None:
    if package is None:
        return None
    try:
        onnx_artifact(package, precision, reader=reader)
    except BackendUnavailableError as error:
        return str(error)
    return None


def _check_installed(backend: str) -> None:
    if (reason := why_not_installed(backend)) is not None:
        raise BackendUnavailableError(reason)


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    title: str
    merit: str
    open: Callable[[ModelPackage, str, tuple[int, ...], int, Path | None], Backend]
    why_unavailable: Callable[[ModelPackage | None, str, tuple[int, ...]], str | None]
    """Why `open` would refuse, as far as that is known without loading the model; None: it would try."""


_CANDIDATES = (
    _Candidate("tensorrt", "TensorRT", "a GPU and an engine that fits it are here", _open_tensorrt, _why_no_tensorrt),
    _Candidate(
        "onnxruntime",
        "ONNX Runtime on a GPU",
        "ONNX Runtime computes on the GPU",
        partial(_open_onnxruntime, cuda=True),
        partial(_why_no_onnxruntime, cuda=True),
    ),
    _Candidate("openvino", "OpenVINO", "the fastest installed CPU runtime", _open_openvino, _why_no_openvino),
    _Candidate(
        "onnxruntime",
        "ONNX Runtime on the CPU",
        "the installed CPU runtime",
        partial(_open_onnxruntime, cuda=False),
        partial(_why_no_onnxruntime, cuda=False),
    ),
)
"""Best first. One that can't be opened here, whatever the reason, leaves its place to the next."""
