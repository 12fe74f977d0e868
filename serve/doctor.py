"""Finds what this machine can serve with, what `--backend auto` would choose and why, and what would serve better."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from fuseline.serve.backends import Judgement, judge_backends
from fuseline.serve.backends.gpu.nvidia_driver import Driver, nvidia_driver
from fuseline.serve.backends.onnx_artifact import why_unwanted
from fuseline.serve.backends.registry import REGISTRY, TENSORRT, TENSORRT_RTX, Runtime, runtimes
from fuseline.serve.batching.policy import DEFAULT_BUCKETS
from fuseline.serve.model_package import ModelPackage
from fuseline.serve.precision import PRECISIONS, PrecisionName, chosen_unasked
from fuseline.serve.process.cpu import Cpu, this_cpu
from fuseline.serve.settings import Settings

_ON_GPU = {entry.title for entry in REGISTRY if entry.device == "gpu"}
_BEST_ON_CPU = next(entry.needs[0][0] for entry in REGISTRY if entry.device == "cpu")


@dataclass(frozen=True, slots=True)
class RuntimeFound:
    """A runtime that Fuseline can use, and the distribution of it that is installed."""

    name: str
    distribution: str | None
    """Name by which pip knows it; None: it is not installed."""
    version: str | None
    install: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of `fuseline doctor`."""

    runtimes: tuple[RuntimeFound, ...]
    driver: Driver | None
    """NVIDIA driver; None: none is installed."""
    cpu: Cpu
    package: str | None
    candidates: tuple[Judgement, ...]
    """Backends that `--backend auto` tries, in that order."""
    advice: tuple[str, ...]
    precision: str | None = None
    """Precision that the choice would compute in, and why; None where that is no CPU backend."""

    @property
    def choice(self) -> Judgement | None:
        """Backend that `--backend auto` would take."""
        return _choice(self.candidates)

    @property
    def as_json(self) -> dict[str, Any]:
        """All findings, for programs."""
        return asdict(self) | {"choice": None if self.choice is None else self.choice.title}


def diagnose(
    package: ModelPackage | None, *, precision: str = "auto", buckets: Sequence[int] = DEFAULT_BUCKETS
) -> Diagnosis:
    """Diagnose the machine and, if it is given, what would serve `package`; no model is loaded and nothing is built."""
    found = tuple(_found(runtime) for runtime in runtimes())
    driver, cpu = nvidia_driver(), this_cpu()
    engine_cache = Settings().engine_cache_folder
    candidates = judge_backends(package, precision=precision, buckets=buckets, engine_cache=engine_cache)
    name = None if package is None else package.manifest.name
    advice = tuple(_advice(found, driver, cpu, package, precision, candidates))
    served = _served_precision(cpu, package, precision, _choice(candidates))
    return Diagnosis(found, driver, cpu, name, candidates, advice, served)


def _choice(candidates: tuple[Judgement, ...]) -> Judgement | None:
    """Return the first candidate without a reason against it."""
    return next((candidate for candidate in candidates if candidate.reason is None), None)


def _served_precision(cpu: Cpu, package: ModelPackage | None, precision: str, choice: Judgement | None) -> str | None:
    if choice is None or choice.title in _ON_GPU:
        return None
    if precision != "auto":
        return f"{precision}: --precision {precision} was given"
    passed_over = []
    for name in chosen_unasked("cpu"):
        row = PRECISIONS[name]
        # The package first: to ask OpenVINO what the CPU can is to load it.
        reason = (None if package is None else why_unwanted(package, name)) or _why_not_in(name, choice, package)
        if reason is not None:
            passed_over.append(f"not {name}, as {reason}")
        elif row.graph == name:
            return f"{name}: {'; '.join(passed_over)}"
        else:
            asked = " for packages that were" if package is None else f", and {package.manifest.name} was"
            return f"{name}: {_computes_in(cpu, name)}{asked} exported with --{row.asked_by}"
    return None


def _computes_in(cpu: Cpu, precision: PrecisionName) -> str:
    return f"this CPU computes in {PRECISIONS[precision].title} ({', '.join(cpu.bf16) or 'as OpenVINO says'})"


def _why_not_in(precision: PrecisionName, choice: Judgement, package: ModelPackage | None) -> str | None:
    """Return why the backend of `choice` can't compute in `precision`; None if it can."""
    judged = judge_backends(package, precision=precision, buckets=DEFAULT_BUCKETS)
    return next(candidate.reason for candidate in judged if candidate.title == choice.title)


def _found(runtime: Runtime) -> RuntimeFound:
    found = []
    for name in runtime.distributions:
        try:
            found.append((name, distribution(name)))
        except PackageNotFoundError:
            continue
    if not found:
        return RuntimeFound(runtime.title, None, None, runtime.install)
    # ONNX Runtime's two distributions have one module, which is imported from the one that comes first on the path.
    name, first = min(found, key=lambda each: _place_on_path(each[1]))
    return RuntimeFound(runtime.title, name, first.version, runtime.install)


def _place_on_path(found: Distribution) -> int:
    folder = Path(str(found.locate_file(""))).resolve()
    places = (place for place, entry in enumerate(sys.path) if Path(entry).resolve() == folder)
    return next(places, len(sys.path))


def _advice(
    found: tuple[RuntimeFound, ...],
    driver: Driver | None,
    cpu: Cpu,
    package: ModelPackage | None,
    precision: str,
    candidates: tuple[Judgement, ...],
) -> list[str]:
    installed = {runtime.name for runtime in found if runtime.distribution is not None}
    advice = []
    if driver is not None and driver.gpus:
        gpu = driver.gpus[0]
        if not installed & {TENSORRT.title, TENSORRT_RTX.title}:
            advice.append(
                f"TensorRT serves fastest on the {gpu.name}: {TENSORRT.install}, or TensorRT for RTX on consumer "
                f"GPUs: {TENSORRT_RTX.install}"
            )
        elif candidates[0].reason is not None:
            advice.append(f"TensorRT would serve fastest on the {gpu.name}, but: {candidates[0].reason}")
        fastest = PRECISIONS[chosen_unasked("gpu")[0]]
        if package is not None and package.find("onnx", fastest.name) is None:
            advice.append(
                f"{package.manifest.name} has no {fastest.title} graph, which GPUs run fastest: export it with "
                f"--{fastest.name}"
            )
    elif driver is not None:
        advice.append(f"an NVIDIA driver is installed, but {driver.problem}")
    choice = _choice(candidates)
    on_cpu = choice is None or choice.title not in _ON_GPU
    if on_cpu and _BEST_ON_CPU.title not in installed:
        advice.append(f"{_BEST_ON_CPU.title} serves fastest on CPUs: {_BEST_ON_CPU.install}")
    half = PRECISIONS[chosen_unasked("cpu")[0]]
    is_asked = package is None or precision != "auto" or package.find("onnx", half.asked_by) is not None
    if cpu.bf16 and not is_asked and choice is not None and choice.title == _BEST_ON_CPU.title:
        advice.append(
            f"{_computes_in(cpu, half.name)}: export the model with --{half.asked_by}, or serve it with --precision "
            f"{half.name}"
        )
    if on_cpu and cpu.int8 and package is not None and precision != "int8":
        export = "" if package.find("onnx", "int8") else f"export {package.manifest.name} with --int8 and "
        advice.append(
            f"this CPU multiplies 8-bit integers ({', '.join(cpu.int8)}): {export}serve it with --precision int8"
        )
    return advice
