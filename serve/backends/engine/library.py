"""Imports TensorRT's two libraries, judges whether an engine fits here, and loads it.

`tensorrt` (data-centre and desktop GPUs) and `tensorrt_rtx` (TensorRT for RTX) have one Python API. Both are imported
only when needed, so that a machine without them serves on other runtimes.
"""

import functools
import importlib
import logging
from collections import deque
from typing import Any

from fuseline.serve.backends.engine.key import EngineDetails, Library
from fuseline.serve.backends.registry import TENSORRT, TENSORRT_RTX, is_importable
from fuseline.serve.errors import BackendError, BackendUnavailableError

INSTALL: dict[str, str] = {library.module: library.install for library in (TENSORRT, TENSORRT_RTX)}
NAMES: dict[str, str] = {library.module: library.title for library in (TENSORRT, TENSORRT_RTX)}

_LOG = logging.getLogger(__name__)
_RECENT_ERRORS = 8


def import_library(library: Library) -> Any:
    """Import and return `tensorrt` or `tensorrt_rtx`.

    Raises:
        BackendUnavailableError: `library` is not installed, or a library that it loads is missing.
    """
    if not is_installed(library):
        raise BackendUnavailableError(f"{NAMES[library]} is not installed: {INSTALL[library]}")
    try:
        return importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{NAMES[library]} is installed but can't be imported ({error}): {INSTALL[library]} puts it right"
        ) from error


def is_installed(library: Library) -> bool:
    """Return whether the library's package is installed; nothing is imported."""
    return is_importable(library)


def why_unfit(details: EngineDetails, *, graph_sha256: str, capability: str, buckets: tuple[int, ...]) -> str | None:
    """Return one sentence that says why the engine doesn't fit here; None if it fits.

    It fits if it was built from that graph for `capability` by the installed library, and takes batches of all
    `buckets`. An engine is bound to the exact build of its library and to the compute capability (NVIDIA, TensorRT
    documentation, "Version Compatibility" and "Hardware Compatibility").

    Raises:
        BackendUnavailableError: the engine's library can't be imported.
    """
    if details.graph_sha256 != graph_sha256:
        return "it was built from another graph than the package's"
    if details.compute_capability != capability:
        return f"it was built for {details.compute_capability}, the GPU here is {capability}"
    smallest, _, largest = details.profile
    if buckets and not (smallest <= min(buckets) and max(buckets) <= largest):
        return f"it takes batches of {smallest} to {largest} rows, the buckets are {', '.join(map(str, buckets))}"
    installed = import_library(details.library).__version__
    if details.library_version != installed:
        return f"it was built by {NAMES[details.library]} {details.library_version}, {installed} is installed here"
    return None


def engine_from_plan(trt: Any, plan: bytes) -> Any:
    """Return the engine in `plan`, deserialised by the library `trt`; it keeps what it needs of the library alive.

    Code that a plan may carry (a lean runtime) is not run: plans are data here.

    Raises:
        BackendUnavailableError: the library refuses the plan; the message carries the library's own diagnosis.
    """
    logger = logger_of(trt)
    logger.recent_errors.clear()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendUnavailableError(
            f"{title(trt)} refuses the engine{_diagnosis(trt, runtime, plan)}: "
            f"{recent_errors(trt) or 'it gives no reason'}"
        )
    return engine


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the one `ILogger` of the library `trt` in this process; it writes to Python's logging.

    TensorRT keeps the first logger that it is given for the life of the process, so there is no second one. The latest
    errors stay in `recent_errors`, for the exception about a call that returned nothing.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        # TensorRT's information is about its inner workings: hundreds of lines for each engine.
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG - 5,
    }

    class PythonLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.recent_errors: deque[str] = deque(maxlen=_RECENT_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            if level == logging.ERROR:
                self.recent_errors.append(" ".join(message.split()))
            _LOG.log(level, "%s: %s", trt.__name__, message)

    return PythonLogger()


def recent_errors(trt: Any) -> str:
    """Return the library's latest errors, on one line; empty if there are none."""
    return "; ".join(logger_of(trt).recent_errors)


def title(trt: Any) -> str:
    """Return the library's name and version, for people."""
    return f"{NAMES[trt.__name__]} {trt.__version__}"


def check(outcome: Any, what: str, trt: Any) -> Any:
    """Return `outcome` of a TensorRT call; raise `BackendError` if it is the None or False of a failure."""
    if outcome is None or outcome is False:
        raise BackendError(f"{title(trt)} could not {what}: {recent_errors(trt) or 'it gives no reason'}")
    return outcome


def _diagnosis(trt: Any, runtime: Any, plan: bytes) -> str:
    """Return why a plan doesn't fit, which TensorRT for RTX can tell from its header; empty where it can't."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    _, flags = runtime.get_engine_validity(plan)
    causes = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flags) & int(flag)
    ]
    return f" ({', '.join(causes)})" if causes else ""
