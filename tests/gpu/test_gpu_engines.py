"""Engines on a GPU: which are refused, and what the ones that run compute in."""

import hashlib
from pathlib import Path

import pytest

from fuseline.serve.backends.engine.builder import EngineBuild, build_engine
from fuseline.serve.backends.engine.inspection import check_inspected
from fuseline.serve.backends.engine.library import engine_from_plan, import_library
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import BackendUnavailableError, FuselineError
from fuseline.serve.model_package import Artifact, ModelPackage, file_facts
from tests.gpu.conftest import BUCKETS, ENGINE_FOR, Subject
from tests.serve.backends.engine_packages import open_tensorrt

pytestmark = pytest.mark.gpu

OTHER_CAPABILITIES = ("sm75", "sm120")


def graph_of(package: ModelPackage) -> bytes:
    artifact = package.find("onnx", "fp16")
    assert artifact is not None
    return package.read(artifact)


def other_capability(cuda: Cuda) -> str:
    return next(name for name in OTHER_CAPABILITIES if name != cuda.gpu().capability)


def build_or_skip(package: ModelPackage, capability: str | None) -> EngineBuild:
    try:
        return build_engine(graph_of(package), precision="fp16", capability=capability, max_batch=BUCKETS[-1])
    except FuselineError as error:
        pytest.skip(f"no engine can be built here for {capability or 'the GPU'}: {error}")


def with_engine(package: ModelPackage, build: EngineBuild, folder: Path, **changed: object) -> ModelPackage:
    """The package with `build` among its artifacts, copied to `folder`; `changed` are details that are not true."""
    for file in (package.manifest.reference, *package.manifest.artifacts):
        (folder / file.path).write_bytes(package.read(file))
    (folder / "foreign.plan").write_bytes(build.plan)
    kind = {"format": build.library, "precision": "fp16", "details": build.details | changed}
    artifact = Artifact.model_validate(file_facts(folder, "foreign.plan") | kind)
    artifacts = (*package.manifest.artifacts, artifact)
    return ModelPackage(folder=folder, manifest=package.manifest.model_copy(update={"artifacts": artifacts}))


def test_an_engine_for_another_compute_capability_is_refused_with_reason_and_cure(
    cuda: Cuda, subject: Subject, tmp_path: Path
) -> None:
    other, here = other_capability(cuda), cuda.gpu().capability
    package = with_engine(subject.package, build_or_skip(subject.package, other), tmp_path)
    with pytest.raises(BackendUnavailableError) as refused:
        open_tensorrt(package, precision="fp16", buckets=BUCKETS)
    assert f"it was built for {other}, the GPU here is {here}" in str(refused.value)
    assert f"--for {here}` builds one" in str(refused.value)


def test_an_engine_whose_details_lie_about_its_capability_is_refused_by_the_library(
    cuda: Cuda, subject: Subject, tmp_path: Path
) -> None:
    build = build_or_skip(subject.package, other_capability(cuda))
    here = cuda.gpu().capability
    package = with_engine(subject.package, build, tmp_path, compute_capability=here)
    with pytest.raises(BackendUnavailableError, match="refuses the engine"):
        open_tensorrt(package, precision="fp16", buckets=BUCKETS)


def test_an_engine_of_another_graph_is_refused(cuda: Cuda, subject: Subject, tmp_path: Path) -> None:
    build = build_or_skip(subject.package, ENGINE_FOR)
    other_graph = hashlib.sha256(b"another graph").hexdigest()
    package = with_engine(subject.package, build, tmp_path, graph_sha256=other_graph)
    with pytest.raises(BackendUnavailableError, match="built from another graph"):
        open_tensorrt(package, precision="fp16", buckets=BUCKETS)


def test_the_engine_inspector_finds_the_weights_in_fp16(cuda: Cuda, subject: Subject) -> None:
    build = build_or_skip(subject.package, ENGINE_FOR)
    trt = import_library(build.library)
    engine = engine_from_plan(trt, build.plan)
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    weights = check_inspected(engine, trt, "fp16", kept_fp32=())
    # An inspector that tells nothing proves nothing.
    assert weights.get("fp16"), told[:4000]
