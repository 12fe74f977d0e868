"""Step 3: a package exported with FP16 and an engine built here, each backend held against eager PyTorch FP32.

`found` gets `package`, its folder, and `backend`, the first that answers rightly on the device that is asked for.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.run.job import PICTURES, TRAINED, Emit, Job
from fuseline.benchmarks.gpu.run.record import Row, failure_row
from fuseline.benchmarks.gpu.run.steps.cpu import TITLES, open_fp32_on_cpu
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.results import without_folders
from fuseline.benchmarks.harness.subject import ARCHITECTURES, random_checkpoint
from fuseline.serve.backends.base import Backend, OpenRequest
from fuseline.serve.backends.engine.inspection import weights_by_precision
from fuseline.serve.backends.engine.key import LIBRARIES, EngineDetails
from fuseline.serve.backends.engine.library import engine_from_plan, import_library
from fuseline.serve.backends.padded import infer_in_largest_bucket
from fuseline.serve.backends.registry import backend_entry
from fuseline.serve.batching.policy import DEFAULT_BUCKETS
from fuseline.serve.errors import BackendUnavailableError, FuselineError
from fuseline.serve.model_package import Artifact, ModelPackage, load_package
from fuseline.serve.reference import check_reference

_PICTURES = 64
_MOST_PICTURES = 1000
_TRAINED_INPUT = ("--input-size", "32", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
Opener = Callable[[ModelPackage], Backend]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Pictures, what eager PyTorch FP32 says to them, and what they show."""

    pixels: NDArray[np.uint8]
    """(n, height, width, channels)"""
    expected: NDArray[np.float32]
    """(n, classes)"""
    labels: NDArray[np.int64] | None = None


def run(job: Job, emit: Emit) -> None:
    """Export, build, and hold every backend against PyTorch."""
    model = job.plan.models[0]
    title = Path(model).stem
    checkpoint = random_checkpoint(model, job.work) if model in ARCHITECTURES else Path(model)
    folder = job.work / title
    exported = _exported(checkpoint, folder, ())
    job.found["package"] = str(folder)
    emit(exported)
    emit(_engine_built(folder, job, title))
    package = load_package(folder)
    pixels = generated_pictures(package.manifest.input.pixel_shape, _PICTURES, seed=1)
    sample = _Sample(pixels, _eager_logits(checkpoint, package, pixels))
    for name, opener in _openers(job.plan.device).items():
        row = _held_against(f"{title} on {name}", opener, package, sample)
        if row.status == "measured" and "backend" not in job.found:
            job.found["backend"] = row.figures["backend"]
        emit(row)
    if job.data is None:
        emit(Row(what="trained ResNet-20", status="not here", reason="the bundle was made without its checkpoint"))
    else:
        _trained(job, job.data, emit)


def _exported(checkpoint: Path, folder: Path, flags: Sequence[str]) -> Row:
    """`fuseline export --fp16`, as a user types it."""
    shutil.rmtree(folder, ignore_errors=True)
    seconds = _fuseline("export", "--fp16", str(checkpoint), "--out", str(folder), *flags)
    package = load_package(folder)
    return Row(
        what=f"export --fp16 {checkpoint.name}",
        figures={"s": seconds, "artifacts": len(package.manifest.artifacts)},
        details={"verification": [entry.model_dump(mode="json") for entry in package.manifest.verification]},
    )


def _engine_built(folder: Path, job: Job, title: str) -> Row:
    """`fuseline engine`: kept if the export built one, else built as the probe found that it can be."""
    what, engine_for = f"engine of {title}", job.found.get("engine_for")
    try:
        seconds = _fuseline("engine", str(folder), *(("--for", engine_for) if engine_for else ()))
        package = load_package(folder)
        engine = next(artifact for artifact in package.manifest.artifacts[::-1] if artifact.format in LIBRARIES)
        weights = _inspected(package, engine) if job.plan.device == "cuda" else {}
    except BackendUnavailableError as error:
        return Row(what=what, status="not here", reason=without_folders(str(error)))
    except _CommandError as error:
        # Without a GPU, or with one that nothing builds for.
        unavailable = error.exit_code == BackendUnavailableError.exit_code
        return Row(what=what, status="not here" if unavailable else "failed", reason=error.said)
    details: dict[str, Any] = dict(engine.details)
    figures = {
        "s": seconds,
        "MB": engine.bytes / 1e6,
        "for": f"{details['library']} {details['library_version']}, {details['compute_capability']}",
        "layers": _counted(details["achieved"]["layers"]),
        "weights by inspector": _counted(weights),
    }
    return Row(what=what, figures=figures, details=details)


def _inspected(package: ModelPackage, engine: Artifact) -> dict[str, int]:
    details = EngineDetails.model_validate(engine.details)
    trt = import_library(details.library)
    return weights_by_precision(engine_from_plan(trt, package.read(engine)), trt)


def _counted(counts: dict[str, int]) -> str | None:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or None


class _CommandError(Exception):
    """`fuseline` ended with another code than 0."""

    def __init__(self, exit_code: int, said: str) -> None:
        super().__init__(f"exit code {exit_code}: {said}")
        self.exit_code = exit_code
        self.said = said


def _fuseline(*arguments: str) -> float:
    """Run the command; return its seconds. Its output is in the log. Raises `_CommandError` if it fails."""
    started = time.monotonic()
    command = [sys.executable, "-m", "fuseline", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    seconds = time.monotonic() - started
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = without_folders((done.stderr.strip().splitlines() or ["it says nothing"])[-1].removeprefix("error: "))
        raise _CommandError(done.returncode, said)
    return round(seconds, 2)


def _eager_logits(checkpoint: Path, package: ModelPackage, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    from fuseline.export.eager import eager_logits
    from fuseline.export.loading.loading import NetworkSource, network_of, read_source

    source = NetworkSource(checkpoint)
    spec = package.manifest.input
    network = network_of(read_source(source), source, (spec.height, spec.width))
    return eager_logits(network.module, pixels, package.manifest.normalization, lambda _: None)


def _openers(device: str) -> dict[str, Opener]:
    """Title to what opens a backend, the best first."""

    def open_fp16_on_gpu(backend: str, package: ModelPackage) -> Backend:
        return backend_entry(backend, "gpu").load().open(package, OpenRequest("gpu", DEFAULT_BUCKETS, "fp16"))

    on_gpu: dict[str, Opener] = {
        "TensorRT FP16": partial(open_fp16_on_gpu, "tensorrt"),
        "ONNX Runtime CUDA FP16": partial(open_fp16_on_gpu, "onnxruntime"),
    }
    on_cpu: dict[str, Opener] = {
        f"{title} FP32": partial(open_fp32_on_cpu, name, buckets=DEFAULT_BUCKETS) for name, title in TITLES.items()
    }
    return on_gpu if device == "cuda" else on_gpu | on_cpu


def _held_against(what: str, opener: Opener, package: ModelPackage, sample: _Sample) -> Row:
    try:
        backend = opener(package)
        try:
            reference = check_reference(backend, package)
            logits = infer_in_largest_bucket(backend, sample.pixels)
        finally:
            backend.close()
        check_logits(what, backend.precision, logits, sample.expected)
    except BackendUnavailableError as error:
        return Row(what=what, status="not here", reason=without_folders(str(error)))
    except FuselineError as error:
        return failure_row(what, error)
    expected, labels = sample.expected, sample.labels
    figures = {
        "backend": backend.name,
        "precision": backend.precision,
        "device": backend.device,
        "pictures": len(logits),
        "reference difference": reference,
        "difference": float(np.abs(logits - expected).max() / np.ptp(expected)),
        "same class": float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }
    if labels is not None:
        figures |= {
            "right": int((logits.argmax(axis=1) == labels).sum()),
            "right by eager PyTorch": int((expected.argmax(axis=1) == labels).sum()),
        }
    return Row(what=what, figures=figures)


def _trained(job: Job, data: Path, emit: Emit) -> None:
    """A trained network on its real pictures: how many it gets right, and how many eager FP32 does."""
    from fuseline.export.sample import image_folder

    folder, title = job.work / "resnet20", "trained ResNet-20"
    emit(_exported(data / TRAINED, folder, _TRAINED_INPUT))
    emit(_engine_built(folder, job, title))
    package = load_package(folder)
    pictures = image_folder(data / PICTURES, _MOST_PICTURES).sample(package.manifest.input)
    shown = [name.split("/")[0] for name in pictures.names]
    classes = sorted(set(shown))
    labels = np.array([classes.index(name) for name in shown])
    sample = _Sample(pictures.pixels, _eager_logits(data / TRAINED, package, pictures.pixels), labels)
    for name, opener in _openers(job.plan.device).items():
        emit(_held_against(f"{title} on {name}", opener, package, sample))
