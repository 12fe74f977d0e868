"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU: loads the engine that fits, and builds one where none does."""

import logging
from functools import partial
from typing import Any

from pydantic import ValidationError

from fuseline.serve.backends.base import OpenRequest
from fuseline.serve.backends.engine.builder import EngineBuild, batch_profile, build_engine, engine_details
from fuseline.serve.backends.engine.cache import EngineCache, cached_engine
from fuseline.serve.backends.engine.display import show_build
from fuseline.serve.backends.engine.inspection import check_inspected
from fuseline.serve.backends.engine.key import LIBRARIES, EngineDetails
from fuseline.serve.backends.engine.library import NAMES, engine_from_plan, import_library, why_unfit
from fuseline.serve.backends.engine.precision import KEPT_FP32
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.backends.gpu.cuda import Gpu, open_cuda
from fuseline.serve.backends.onnx_artifact import onnx_artifact
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend
from fuseline.serve.errors import BackendError, BackendUnavailableError, InputError, PackageError, VerificationError
from fuseline.serve.model_package import Artifact, ModelPackage

_LOG = logging.getLogger(__name__)


def open(package: ModelPackage, request: OpenRequest) -> TensorRTBackend:
    """Load the engine of `package` that fits this machine; where none does, build it from the package's ONNX graph.

    An engine of another graph, library build or compute capability is refused, and so is one whose batch profile
    doesn't include all of `request.buckets`, or whose sha256 is not the manifest's.

    Raises:
        BackendUnavailableError: there is no GPU, or no engine that fits it and none can be built.
        PackageError: the graph is damaged, or the engine's tensors are not what the manifest describes.
        BackendError: the GPU failed, or has too little memory.
        VerificationError: by its own inspector the engine is not in the graph's precision.
    """
    # The GPU comes before the engines: without one nothing about them matters to the user.
    cuda = open_cuda()
    gpu = cuda.gpu()
    graph = onnx_artifact(package, request.precision, reader="tensorrt")
    opened, refusals = _engine_of_package(package, graph, gpu, request.buckets)
    if opened is None:
        if request.engine_cache is None:
            raise BackendUnavailableError(_why_none_fits(package, graph, gpu, refusals))
        for refusal in refusals:
            _LOG.warning("package %s: %s", package.manifest.name, refusal)
        opened = _built_engine(package, graph, gpu, request.buckets, EngineCache(request.engine_cache))
    engine, trt = opened
    check_inspected(engine, trt, graph.precision, kept_fp32=graph.details.get(KEPT_FP32, ()))
    return TensorRTBackend(
        engine,
        trt,
        cuda,
        row_shape=package.manifest.input.row_shape,
        row_dtype=package.manifest.input.row_dtype,
        input_name=package.manifest.input.name,
        output_name=package.manifest.output_name,
        classes=package.manifest.classes,
        precision=graph.precision,
        device=f"{gpu.name} ({NAMES[trt.__name__]})",
        buckets=request.buckets,
    )


def why_unavailable(package: ModelPackage | None, request: OpenRequest) -> str | None:
    """See `fuseline.serve.backends.registry.BackendModule`.

    The check is cheap: it reads no engine files, and imports the runtime only where a GPU is. None for `package` asks
    whether this machine could serve a package whose engine is built here.
    """
    try:
        gpu = open_cuda().gpu()
        if package is None:
            available_builder(gpu.capability)
            return None
        graph = onnx_artifact(package, request.precision, reader="tensorrt")
        judged = _judged(package, graph, gpu, request.buckets)
        if any(reason is None for _, _, reason in judged):
            return None
        if request.engine_cache is None:
            return _why_none_fits(package, graph, gpu, [f"{a.path}: {reason}" for a, _, reason in judged])
        available_builder(gpu.capability)
    except (BackendUnavailableError, BackendError, InputError) as error:
        return str(error)
    return None


def _engine_of_package(
    package: ModelPackage, graph: Artifact, gpu: Gpu, buckets: tuple[int, ...]
) -> tuple[tuple[Any, Any] | None, list[str]]:
    """Return the package's first engine that fits and loads, with its library, if any, and why those before don't."""
    refusals: list[str] = []
    for artifact, details, unfit in _judged(package, graph, gpu, buckets):
        reason = unfit
        if details is not None and unfit is None:
            try:
                trt = import_library(details.library)
                return (engine_from_plan(trt, package.read(artifact)), trt), refusals
            except (BackendUnavailableError, PackageError) as error:
                reason = str(error)
        refusals.append(f"{artifact.path}: {reason}")
    return None, refusals


def _judged(
    package: ModelPackage, graph: Artifact, gpu: Gpu, buckets: tuple[int, ...]
) -> list[tuple[Artifact, EngineDetails | None, str | None]]:
    """Return each engine in the precision of `graph`, its details, and why it doesn't fit; None: it fits."""
    judged: list[tuple[Artifact, EngineDetails | None, str | None]] = []
    for artifact in package.manifest.artifacts:
        if artifact.format not in LIBRARIES or artifact.precision != graph.precision:
            continue
        details, reason = None, None
        try:
            details = EngineDetails.model_validate(artifact.details)
            reason = why_unfit(details, graph_sha256=graph.sha256, capability=gpu.capability, buckets=buckets)
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
            reason = f"its details in the manifest are no engine's: {fields}"
        except BackendUnavailableError as error:
            reason = str(error)
        judged.append((artifact, details, reason))
    return judged


def _built_engine(
    package: ModelPackage, graph: Artifact, gpu: Gpu, buckets: tuple[int, ...], cache: EngineCache
) -> tuple[Any, Any]:
    """Return the engine of `graph` for this machine, from the cache or built now, and its library."""
    choice = available_builder(gpu.capability)
    trt = import_library(choice.library)
    onnx = package.read(graph)
    title = f"building the {NAMES[choice.library]} engine of {package.manifest.name} for the {gpu.name}"

    def build(timing_cache: bytes | None) -> EngineBuild:
        with show_build(title, _LOG.info) as on_progress:
            return build_engine(
                onnx,
                precision=graph.precision,
                capability=gpu.capability,
                max_batch=buckets[-1],
                allowed_fp32=graph.details.get(KEPT_FP32),
                input_name=package.manifest.input.name,
                output_name=package.manifest.output_name,
                on_progress=on_progress,
                timing_cache=timing_cache,
            )

    try:
        bound_to = engine_details(choice, graph.sha256, batch_profile(buckets[-1]))
        return cached_engine(cache, bound_to, build=build, load=partial(engine_from_plan, trt)), trt
    except (InputError, VerificationError) as error:
        raise BackendUnavailableError(f"no engine can be built from {graph.path}: {error}") from error


def _why_none_fits(package: ModelPackage, graph: Artifact, gpu: Gpu, refusals: list[str]) -> str:
    cure = f"`fuseline engine {package.folder} --for {gpu.capability}` builds one"
    if not refusals:
        return f"package {package.manifest.name} has no {graph.precision} TensorRT engine; {cure}"
    reasons = "; ".join(refusals)
    return f"no engine of package {package.manifest.name} fits the {gpu.name} here: {reasons}; {cure}"
