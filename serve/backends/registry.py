"""The registry of backends, best first: the name, needs and merit of each.

Reading the registry imports no backend and no runtime, so that the commands start fast. A backend is a module of this
folder, named as the backend, that offers what `BackendModule` says, a name in `BackendName`, and a row of `REGISTRY`.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

from fuseline.serve.backends.base import Backend, Infer, OpenRequest
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.precision import PRECISIONS, Device, PrecisionName

BackendName = Literal["onnxruntime", "openvino", "tensorrt"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""Names for `--backend`, in alphabetical order."""


class BackendModule(Protocol):
    """The functions that the module of a backend offers."""

    def open(self, package: ModelPackage, request: OpenRequest) -> Backend:
        """Load `package` as `request` asks.

        Raises:
            BackendUnavailableError: this machine or this package doesn't allow it; the message says what to do.
            BackendError: the runtime failed.
            PackageError: the artifact is missing or damaged.
            VerificationError: the loaded artifact is not in the precision that it should be in.
        """
        ...

    def why_unavailable(self, package: ModelPackage | None, request: OpenRequest) -> str | None:
        """Return why `open` would refuse, as far as is known without loading the model; None: it would try.

        `package` None asks about the machine alone.
        """
        ...

    def graph_runner(self, graph: bytes) -> Infer:
        """Return a function that computes the logits of an ONNX graph as this backend would; for CPU backends only.

        Raises whatever the runtime raises on a graph that it can't load.
        """
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """A Python package that a backend computes with."""

    title: str
    module: str
    """Name by which it is imported."""
    distributions: tuple[str, ...]
    """Names by which pip knows it; any one of them has the module."""
    extra: str
    """Extra of Fuseline that installs it."""

    @property
    def install(self) -> str:
        """Command that installs it."""
        return f"pip install 'fuseline[{self.extra}]'"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend on one kind of device."""

    name: BackendName
    title: str
    merit: str
    """Reason why it is chosen, for people."""
    device: Device
    needs: tuple[tuple[Runtime, ...], ...]
    """Runtimes that must be installed: one of each inner tuple."""
    formats: tuple[str, ...] = ("onnx",)
    """Formats of the artifacts that it runs."""
    rounds_to: tuple[PrecisionName, ...] = ()
    """Precisions without an artifact of their own, to which it rounds while it computes that of another precision."""

    def load(self) -> BackendModule:
        """Import and return the backend's module."""
        return cast(BackendModule, importlib.import_module(f"{__package__}.{self.name}"))


ONNXRUNTIME = Runtime("ONNX Runtime", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "cpu")
OPENVINO = Runtime("OpenVINO", "openvino", ("openvino",), "cpu")
TENSORRT = Runtime("TensorRT", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "gpu")
TENSORRT_RTX = Runtime(
    "TensorRT for RTX", "tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"), "rtx"
)
CUDA_BINDINGS = Runtime("cuda-bindings", "cuda.bindings", ("cuda-bindings",), "gpu")

REGISTRY = (
    BackendEntry(
        "tensorrt",
        "TensorRT",
        "a GPU and an engine that fits it are here",
        "gpu",
        needs=((TENSORRT, TENSORRT_RTX), (CUDA_BINDINGS,)),
        formats=("tensorrt", "tensorrt_rtx"),
    ),
    BackendEntry(
        "onnxruntime", "ONNX Runtime on a GPU", "ONNX Runtime computes on the GPU", "gpu", needs=((ONNXRUNTIME,),)
    ),
    BackendEntry(
        "openvino",
        "OpenVINO",
        "the fastest installed CPU runtime",
        "cpu",
        needs=((OPENVINO,),),
        rounds_to=("bf16",),
    ),
    BackendEntry("onnxruntime", "ONNX Runtime on the CPU", "the installed CPU runtime", "cpu", needs=((ONNXRUNTIME,),)),
)
"""Backends, best first. If one can't be opened here, whatever the reason, the next is tried."""

CPU_BACKENDS = tuple(sorted(entry.name for entry in REGISTRY if entry.device == "cpu"))
"""Names of the backends that compute on a CPU, in alphabetical order."""


def backend_entry(name: str, device: Device | None = None) -> BackendEntry:
    """Return the entry of backend `name` on `device`, by default its best one. Raise `KeyError` when there is none."""
    for entry in REGISTRY:
        if entry.name == name and device in (None, entry.device):
            return entry
    raise KeyError(name)


def title_of(backend: str) -> str:
    """Return the title of the runtime that `backend` computes with, whatever the device."""
    return backend_entry(backend).needs[0][0].title


def runtimes() -> tuple[Runtime, ...]:
    """Return every runtime of the backends once, in the order of the backends' names."""
    needs = (need for name in BACKENDS for need in backend_entry(name).needs)
    return tuple(dict.fromkeys(runtime for alternatives in needs for runtime in alternatives))


def why_not_installed(backend: str) -> str | None:
    """Return one sentence that says what to install for `backend`; None if its runtimes can be imported."""
    for alternatives in backend_entry(backend).needs:
        if not any(is_importable(runtime.module) for runtime in alternatives):
            installs = " or ".join(runtime.install for runtime in alternatives)
            if len(alternatives) == 1:
                return f"{alternatives[0].module} is not installed: {installs}"
            return f"neither {' nor '.join(runtime.module for runtime in alternatives)} is installed: {installs}"
    return None


def why_not_rounding(entry: BackendEntry, precision: str) -> str | None:
    """Return why `entry` can't round to `precision`; None if it can, or if artifacts are in that precision."""
    row = PRECISIONS.get(precision)
    if row is None or row.graph == precision or precision in entry.rounds_to:
        return None
    able = " or ".join(f"--backend {other.name}" for other in REGISTRY if precision in other.rounds_to)
    return f"it has no {row.title}: take {able}, or --precision {row.graph}"


def is_importable(module: str) -> bool:
    """Return whether `module` can be found; it isn't imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # The package that the module is part of isn't installed.
        return False
