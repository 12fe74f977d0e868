"""The engines of a model package: built from its own graphs and entered in its manifest."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fuseline.serve.backends.engine.builder import EngineBuild, batch_profile, build_engine, engine_details
from fuseline.serve.backends.engine.cache import EngineCache, write_whole
from fuseline.serve.backends.engine.key import LIBRARIES, EngineDetails
from fuseline.serve.backends.engine.library import NAMES
from fuseline.serve.backends.engine.lock import file_lock
from fuseline.serve.backends.engine.precision import KEPT_FP32
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.backends.onnx_artifact import onnx_artifact
from fuseline.serve.errors import InputError, PackageError
from fuseline.serve.model_package import MANIFEST_NAME, Artifact, ModelPackage, file_facts, load_package, manifest_text
from fuseline.serve.precision import GPU_CHOICES

FOLDER = "engines"

ShowProgress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]


@dataclass(frozen=True, slots=True)
class AddedEngine:
    """An engine of a package after `add_engine`."""

    artifact: Artifact
    built: EngineBuild | None
    """The build that made it; None: the engine was there already."""

    @property
    def described(self) -> str:
        """Description of the engine, for people, on one line."""
        details = EngineDetails.model_validate(self.artifact.details)
        name = f"{NAMES[details.library]} {details.library_version}, {details.compute_capability}"
        what = f"{self.artifact.path} ({name}, {self.artifact.precision}, up to {details.profile[2]} images a batch)"
        if self.built is None:
            return f"{what} is there already and fits; nothing was built"
        size = f"{self.artifact.bytes / 2**20:.1f} MiB"
        return f"{what}: built in {self.built.seconds:.1f} s, {size}; {self.built.achieved}"


def add_engine(
    folder: Path,
    *,
    capability: str | None,
    precision: str,
    max_batch: int,
    show_progress: ShowProgress,
    on_wait: Callable[[], None],
) -> AddedEngine:
    """Build the engine of the package in `folder` for `capability`, unless a sound one is there.

    The engine is added to the manifest. Its file and then the manifest are replaced whole, so that a server that starts
    meanwhile finds the old package or the new one. Of several processes that add to one package, one works at a time.

    Args:
        capability: compute capability, such as `sm89`; None: that of the GPU here. `available_builder` takes two words
            more.
        precision: precision of the graph to build from; `auto`: FP16 if the package has it, else FP32.
        max_batch: largest batch in rows.
        show_progress: makes the context in which a build's progress is shown.
        on_wait: is called when another process is adding to the package.

    Raises:
        InputError: an unknown precision, or a capability that can't be built for.
        PackageError: `folder` is no package, its graph is damaged, or it can't be written to.
        BackendUnavailableError: the package has no such graph, or nothing can build here.
        VerificationError: the graph is not in the precision that the manifest says.
        BackendError: the parser or the builder failed.
    """
    if precision not in GPU_CHOICES:
        raise InputError(f"--precision {precision!r}: one of {', '.join(GPU_CHOICES)} was expected")
    load_package(folder)
    try:
        with file_lock(folder, on_wait):
            # The package is loaded again, as another process may have added to it before this one had the lock.
            return _add(load_package(folder), capability, precision, max_batch, show_progress)
    except OSError as error:
        raise PackageError(f"can't add an engine to {folder}: {error.strerror}") from error


def _add(
    package: ModelPackage, capability: str | None, precision: str, max_batch: int, show_progress: ShowProgress
) -> AddedEngine:
    graph = onnx_artifact(package, precision, reader="tensorrt")
    choice = available_builder(capability)
    bound_to = engine_details(choice, graph.sha256, batch_profile(max_batch))
    if (there := _sound_engine(package, bound_to)) is not None:
        return AddedEngine(there, None)
    onnx = package.read(graph)
    engines = package.folder / FOLDER
    engines.mkdir(exist_ok=True)
    # A folder that can't be written to is better known before the build than after it.
    for written in (engines, package.folder):
        tempfile.TemporaryFile(dir=written).close()
    timing = EngineCache(engines)
    timing_file = f"{bound_to.timing_key}.cache"
    with show_progress() as on_progress:
        built = build_engine(
            onnx,
            precision=graph.precision,
            capability=capability,
            max_batch=max_batch,
            allowed_fp32=graph.details.get(KEPT_FP32),
            input_name=package.manifest.input.name,
            output_name=package.manifest.output_name,
            on_progress=on_progress,
            timing_cache=timing.read(timing_file),
        )
    path = f"{FOLDER}/{built.key}.plan"
    write_whole(package.folder / path, built.plan)
    if built.timing_cache is not None:
        timing.write(timing_file, built.timing_cache)
    kind = {"format": built.library, "precision": graph.precision, "details": built.details}
    artifact = Artifact.model_validate(file_facts(package.folder, path) | kind)
    others = tuple(other for other in package.manifest.artifacts if other.path != path)
    _replace_manifest(package, (*others, artifact))
    return AddedEngine(artifact, built)


def _sound_engine(package: ModelPackage, bound_to: EngineDetails) -> Artifact | None:
    """Return the package's engine that is bound to `bound_to` and has the manifest's bytes, if there is one."""
    for artifact in package.manifest.artifacts:
        if artifact.format not in LIBRARIES:
            continue
        try:
            if EngineDetails.model_validate(artifact.details) == bound_to:
                package.checked_path(artifact)
                return artifact
        # With details that are no engine's, or other bytes, the engine is built anew.
        except (ValidationError, PackageError):
            continue
    return None


def _replace_manifest(package: ModelPackage, artifacts: tuple[Artifact, ...]) -> None:
    manifest = package.manifest.model_copy(update={"artifacts": artifacts})
    write_whole(package.folder / MANIFEST_NAME, manifest_text(manifest).encode())
