"""What this machine can serve with, what `--backend auto` would choose and why, and what would serve better."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from fuseline.serve.backends import DEFAULT_BUCKETS, Verdict, judge_backends
from fuseline.serve.backends.engine.library import INSTALL
from fuseline.serve.backends.gpu.nvidia_driver import Driver, nvidia_driver
from fuseline.serve.cpu import Cpu, this_cpu
from fuseline.serve.model_package import ModelPackage

_DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "ONNX Runtime": ("onnxruntime", "onnxruntime-gpu"),
    "OpenVINO": ("openvino",),
    "TensorRT": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "TensorRT for RTX": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "cuda-bindings": ("cuda-bindings",),
}
_INSTALL = {
    "ONNX Runtime": "pip install 'fuseline[cpu]'",
    "OpenVINO": "pip install 'fuseline[cpu]'",
    "TensorRT": INSTALL["tensorrt"],
    "TensorRT for RTX": INSTALL["tensorrt_rtx"],
    "cuda-bindings": INSTALL["tensorrt"],
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that Fuseline can use."""

    name: str
    distribution: str | None
    """As pip calls it, with its version; None: it is not installed."""
    version: str | None
    install: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `fuseline doctor` found."""

    runtimes: tuple[Runtime, ...]
    driver: Driver | None
    """None: no NVIDIA driver is installed."""
    cpu: Cpu
    package: str | None
    candidates: tuple[Verdict, ...]
    """Of `--backend auto`, in turn."""
    advice: tuple[str, ...]

    @property
    def choice(self) -> Verdict | None:
        """What `--backend auto` would take: the first candidate that isn't passed over."""
        return next((candidate for candidate in self.candidates if candidate.reason is None), None)

    @property
    def as_json(self) -> dict[str, Any]:
        """The whole of it, for programs."""
        return asdict(self) | {"choice": None if self.choice is None else self.choice.title}


def diagnose(
    package: ModelPackage | None, *, precision: str = "auto", buckets: Sequence[int] = DEFAULT_BUCKETS
) -> Diagnosis:
    """Look at the machine and, if `package` is given, at what would serve it; no model is loaded, nothing is built."""
    runtimes = tuple(_runtime(name) for name in _DISTRIBUTIONS)
    driver, cpu = nvidia_driver(), this_cpu()
    candidates = judge_backends(package, precision=precision, buckets=buckets)
    name = None if package is None else package.manifest.name
    advice = tuple(_advice(runtimes, driver, cpu, package, precision, candidates))
    return Diagnosis(runtimes, driver, cpu, name, candidates, advice)


def _runtime(name: str) -> Runtime:
    found = []
    for title in _DISTRIBUTIONS[name]:
        try:
            found.append((title, distribution(title)))
        except PackageNotFoundError:
            continue
    if not found:
        return Runtime(name, None, None, _INSTALL[name])
    # ONNX Runtime's two have one module: it is imported from whichever comes first on the path.
    title, first = min(found, key=lambda each: _place_on_path(each[1]))
    return Runtime(name, title, first.version, _INSTALL[name])


def _place_on_path(found: Distribution) -> int:
    folder = Path(str(found.locate_file(""))).resolve()
    places = (place for place, entry in enumerate(sys.path) if Path(entry).resolve() == folder)
    return next(places, len(sys.path))


def _advice(
    runtimes: tuple[Runtime, ...],
    driver: Driver | None,
    cpu: Cpu,
    package: ModelPackage | None,
    precision: str,
    candidates: tuple[Verdict, ...],
) -> list[str]:
    installed = {runtime.name for runtime in runtimes if runtime.distribution is not None}
    advice = []
    if driver is not None and driver.gpus:
        gpu = driver.gpus[0]
        if not installed & {"TensorRT", "TensorRT for RTX"}:
            advice.append(
                f"TensorRT serves fastest on the {gpu.name}: {INSTALL['tensorrt']}, or TensorRT for RTX on consumer "
                f"GPUs: {INSTALL['tensorrt_rtx']}"
            )
        elif candidates[0].reason is not None:
            advice.append(f"TensorRT would serve fastest on the {gpu.name}, but: {candidates[0].reason}")
        if package is not None and package.find("onnx", "fp16") is None:
            advice.append(f"{package.manifest.name} has no FP16 graph, which GPUs run fastest: export it with --fp16")
    elif driver is not None:
        advice.append(f"an NVIDIA driver is installed, but {driver.problem}")
    choice = next((candidate for candidate in candidates if candidate.reason is None), None)
    on_cpu = choice is None or choice.title not in ("TensorRT", "ONNX Runtime on a GPU")
    if on_cpu and "OpenVINO" not in installed:
        advice.append(f"OpenVINO serves fastest on CPUs: {_INSTALL['OpenVINO']}")
    if on_cpu and cpu.int8 and package is not None and precision != "int8":
        export = "" if package.find("onnx", "int8") else f"export {package.manifest.name} with --int8 and "
        advice.append(
            f"this CPU multiplies 8-bit integers ({', '.join(cpu.int8)}): {export}serve it with --precision int8"
        )
    return advice
