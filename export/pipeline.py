"""The steps that turn a checkpoint into a model package, top to bottom."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.export.artifacts import Fp16Options, Int8Options, write_artifacts
from fuseline.export.assumptions.assumptions import check_none_open
from fuseline.export.assumptions.settling import check_accuracy, settle
from fuseline.export.assumptions.training_statistics import MAX_IMAGES, TrainingStatistics, training_statistics
from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.checkpoint.wrapper_prefixes import printable
from fuseline.export.destination import destination_of, model_name
from fuseline.export.eager import eager_logits, normalised
from fuseline.export.facts.graph_interface import graph_interface, with_interface
from fuseline.export.facts.model_facts import ModelFacts, facts_from, no_labels
from fuseline.export.folding.fold import FoldedNetwork, fold_network
from fuseline.export.loading.loading import NetworkSource, network_of, read_source
from fuseline.export.network import TrainedNetwork
from fuseline.export.progress import LogProgress, Progress
from fuseline.export.report import Report, write_report
from fuseline.export.sample import ImageFolder, Sample, generated_sample, image_folder
from fuseline.export.verify import Skipped, check_passed, rounding_doubts, verify_artifact
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.backends.registry import CPU_BACKENDS, backend_entry
from fuseline.serve.errors import BackendUnavailableError, PackageError
from fuseline.serve.model_package import (
    Artifact,
    Manifest,
    ModelPackage,
    PackageFile,
    Task,
    Verification,
    file_facts,
    save_manifest,
)
from fuseline.serve.package_destination import check_destination, new_package_folder
from fuseline.serve.precision import PRECISIONS, PrecisionName
from fuseline.serve.reference import REFERENCE_NAME, write_reference

_PROBE_ROWS = 1
_GENERATED_IMAGES = 64
_GENERATED_IMAGES_FOR_INT8 = 256
_CPU_RUNTIMES = [backend_entry(name, "cpu").needs[0][0].distributions[0] for name in CPU_BACKENDS]
_VERSIONS_OF = ("fuseline", "torch", "onnx", *_CPU_RUNTIMES, "numpy")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user asks for."""

    source: NetworkSource
    out: Path | None = None
    """Folder of the package; None: the checkpoint's path without its suffix."""
    name: str | None = None
    """Name of the model; None: that of the package's folder."""
    force: bool = False
    """Whether an existing package is replaced."""
    fp16: Fp16Options | None = None
    """How an FP16 graph is made; None: none is."""
    int8: Int8Options | None = None
    """How INT8 graphs are made; None: none are."""
    engine: str | None = None
    """Compute capability, such as `sm89`, that a TensorRT engine is built for without a GPU; None: the GPU at hand."""
    images: Path | None = None
    """Folder of images to verify on; None: they are generated."""
    max_images: int = 1000
    """Largest number of images of `images`."""
    generated_images: int | None = None
    """Number of images to generate without `images`; None: 64, or 256 with `int8`."""
    labels: str | None = None
    """Path of a file of labels, or `imagenet`; None: the checkpoint's labels, or the classes' indices."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int] | None = None
    """(height, width) in pixels."""
    input_format: str = "uint8-nhwc"
    """What the package's graphs take, a name of `fuseline.serve.input_format.INPUT_FORMATS`."""
    input_name: str | None = None
    """Name of the graphs' input; None: the format's customary one."""
    output_name: str | None = None
    """Name of the graphs' output; None: the format's customary one."""
    task: Task | None = None
    """Task of the network; None: what the checkpoint says, or single-label."""
    strict: bool = False
    """Whether to refuse while anything that changes answers is assumed and not settled."""
    command: str = "fuseline export CHECKPOINT"
    """The user's command line, for messages that say how to go on."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made."""

    folder: Path
    manifest: Manifest
    report: Report


def export_checkpoint(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Write the model package of `options.source`, whole or not at all.

    `progress` is told of each step and of each warning; without one they go to the log.

    Raises:
        InputError: the checkpoint, an option or the destination is wrong.
        VerificationError: an artifact differs from eager PyTorch FP32 beyond its bar.
        BackendUnavailableError: `options.engine` is given and can't be built here.
    """
    progress = progress or LogProgress()
    destination = destination_of(options.source.checkpoint, options.out)
    check_destination(destination, replace=options.force)
    name = model_name(options.name, destination)
    interface = graph_interface(options.input_format, options.input_name, options.output_name)
    if options.engine is not None:
        available_builder(options.engine)

    with progress.step(f"Reading {options.source.checkpoint.name}") as step:
        checkpoint = read_source(options.source)
        step.done("; ".join((f"{len(checkpoint.tensors)} tensors", *checkpoint.notes)))
    images = None if options.images is None else image_folder(options.images, options.max_images)
    with progress.step("Recognising the architecture") as step:
        shared_size = None if images is None else images.shared_size
        trained = network_of(checkpoint, options.source, options.input_size, shared_size)
        facts = facts_from(
            checkpoint,
            trained,
            labels=options.labels,
            mean=options.mean,
            std=options.std,
            input_size=options.input_size,
            assumed=options.source.assumed,
            shared_size=shared_size,
            task=options.task,
        )
        step.done(f"{trained.architecture}, {facts.described_classes}, input {facts.described_input}")
    settled = settle(trained, facts, checkpoint, images, options.source.assumed, options.command, progress)
    facts, doubts = with_interface(settled.facts, interface), settled.doubts
    with progress.step("Collecting images to verify on") as step:
        sample, generated = _sample(options, images, facts)
        doubts = (*doubts, *generated)
        step.done(sample.source)
    if images is not None:
        with progress.step("Comparing activations with those of the training") as step:
            trained_on = _training_statistics(trained, facts, sample, images)
            step.done(trained_on.described if trained_on else "too few images, or no BatchNorm to compare with")
        if trained_on and not trained_on.as_in_training:
            doubts = (*doubts, trained_on.doubt)
    eager = _eager(trained, facts, sample, progress)
    if settled.truth is not None:
        facts = replace(facts, assumptions=check_accuracy(eager, settled.truth, facts.assumptions, settled.doubts))
    if not facts.labels_known:
        doubts = (*doubts, no_labels(len(facts.labels)))
    open_ones = tuple(assumption.line for assumption in facts.assumptions if assumption.is_open)
    for warning in (*open_ones, *facts.warnings, *doubts):
        progress.warn(warning)
    if options.strict:
        check_none_open(facts.assumptions)
    with progress.step(f"Folding BatchNorm{'' if facts.input.format.normalised else ' and input scaling'}") as step:
        network = _named_as_in_checkpoint(_fold(trained, facts, sample), trained.layer_names)
        kept = f"; {len(network.kept)} kept as a scale and a shift" if network.kept else ", none left"
        step.done(f"{len(network.folds)} BatchNorms folded{kept}")

    try:
        with new_package_folder(destination, replace=options.force) as folder:
            write_reference(folder, sample.pixels, eager)
            written = write_artifacts(
                folder,
                network,
                facts,
                fp16=options.fp16,
                int8=options.int8,
                sample=sample,
                eager=eager,
                layer_names=trained.layer_names,
                output_name=interface.output_name,
                engine_for=options.engine,
                progress=progress,
            )
            manifest = Manifest(
                name=name,
                architecture=trained.architecture,
                input=facts.input,
                normalization=facts.normalization,
                labels=facts.labels,
                artifacts=written.artifacts,
                reference=PackageFile.model_validate(file_facts(folder, REFERENCE_NAME)),
                provenance=_provenance(checkpoint, options),
                task=facts.task,
                assumptions=facts.assumptions,
                output_name=interface.output_name,
            )
            package = ModelPackage(folder=folder, manifest=manifest)
            verifications, skipped = _verify(package, sample, eager, settled.truth, options.int8, progress)
            manifest = manifest.model_copy(update={"verification": verifications})
            rounded = rounding_doubts(verifications)
            for warning in rounded:
                progress.warn(warning)
            report = Report(
                manifest=manifest,
                parameters=sum(parameter.numel() for parameter in trained.module.parameters()),
                evidence=trained.evidence,
                folds=network.folds,
                kept=network.kept,
                scale_folded=network.scale_folded,
                precision={path: share.as_json for path, share in written.precision.items()},
                fp16_kept_in_fp32=written.fp16.kept if written.fp16 else (),
                fp16_ranges=written.fp16.ranges if written.fp16 else (),
                engine_note=written.engine_note,
                skipped=skipped,
                tried=settled.findings.table if settled.findings else (),
                fp16_deviation=written.fp16.deviation if written.fp16 else None,
                int8={path: graph.findings for path, graph in written.int8.items()},
                warnings=(*facts.warnings, *doubts, *written.int8_warnings, *rounded),
            )
            check_passed(verifications)
            write_report(folder, report)
            save_manifest(folder, manifest)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PackageError(
            f"{destination} could not be written, and nothing of it was left behind: {reason}"
        ) from error
    return ExportResult(destination, manifest, report)


def _sample(options: ExportOptions, images: ImageFolder | None, facts: ModelFacts) -> tuple[Sample, tuple[str, ...]]:
    if images is not None:
        return images.sample(facts.input), ()
    done = "verified" if options.fp16 is None else "verified, and FP16 held against overflow,"
    if options.int8 is not None:
        done = f"INT8 was calibrated, and all {done}"
    usual = _GENERATED_IMAGES if options.int8 is None else _GENERATED_IMAGES_FOR_INT8
    doubt = f"{done} on generated images only; --images DIR with a few hundred of the network's own kind proves more"
    return generated_sample(facts.input, options.generated_images or usual), (doubt,)


def _training_statistics(
    trained: TrainedNetwork, facts: ModelFacts, sample: Sample, images: ImageFolder
) -> TrainingStatistics | None:
    return training_statistics(
        trained.module, normalised(sample.pixels[images.spread(MAX_IMAGES)], facts.normalization)
    )


def _fold(trained: TrainedNetwork, facts: ModelFacts, sample: Sample) -> FoldedNetwork:
    return fold_network(
        trained.module,
        mean=facts.normalization.mean,
        std=facts.normalization.std,
        probe=normalised(sample.pixels[:_PROBE_ROWS], facts.normalization),
        takes_pixels=not facts.input.format.normalised,
    )


def _named_as_in_checkpoint(network: FoldedNetwork, layer_names: Mapping[str, str]) -> FoldedNetwork:
    """Return `network` with its layers called as in the checkpoint, whose names the user knows."""

    def renamed(name: str) -> str:
        return layer_names.get(name, name)

    return replace(
        network,
        folds=tuple(
            replace(fold, convolution=renamed(fold.convolution), batchnorm=renamed(fold.batchnorm))
            for fold in network.folds
        ),
        kept=tuple(replace(kept, batchnorm=renamed(kept.batchnorm)) for kept in network.kept),
    )


def _eager(trained: TrainedNetwork, facts: ModelFacts, sample: Sample, progress: Progress) -> NDArray[np.float32]:
    with progress.step("Running eager PyTorch FP32") as step:
        logits = eager_logits(trained.module, sample.pixels, facts.normalization, step.advance_to)
        step.done(f"{len(logits)} images")
    return logits


def _verify(
    package: ModelPackage,
    sample: Sample,
    eager: NDArray[np.float32],
    truth: NDArray[np.int64] | None,
    int8: Int8Options | None,
    progress: Progress,
) -> tuple[tuple[Verification, ...], tuple[Skipped, ...]]:
    verifications: list[Verification] = []
    skipped: list[Skipped] = []
    runs: list[tuple[Artifact, PrecisionName | None]] = [(artifact, None) for artifact in package.manifest.artifacts]
    for row in PRECISIONS.values():
        graph = package.find("onnx", row.graph)
        if row.graph != row.name and graph is not None and package.find("onnx", row.asked_by) is not None:
            runs.append((graph, row.name))
    for artifact, precision in runs:
        in_precision = "" if precision is None else f" in {PRECISIONS[precision].title}"
        with progress.step(f"Verifying {artifact.path}{in_precision}") as step:
            bar = int8.bar if int8 and artifact.precision == "int8" else None
            made, not_run = verify_artifact(
                package, artifact, sample, eager, step.advance_to, precision=precision, bar=bar, truth=truth
            )
            verifications += made
            skipped += not_run
            results = [
                f"{v.backend} {v.agreement_on} {v.agreement:.2%}, off by {v.max_abs_difference:.2g}{_accuracy(v)}"
                for v in made
            ]
            step.done("; ".join((*results, *(f"not run on {s.backend}: {s.reason}" for s in not_run))))
    if not verifications:
        reasons = "; ".join(s.reason for s in skipped)
        raise BackendUnavailableError(f"no backend could run the export, so it can't be verified: {reasons}")
    return tuple(verifications), tuple(skipped)


def _accuracy(verification: Verification) -> str:
    if verification.accuracy is None:
        return ""
    right, eager = (
        round((share or 0.0) * verification.images) for share in (verification.accuracy, verification.eager_accuracy)
    )
    return f", {right} of {verification.images} right (eager {eager})"


def _provenance(checkpoint: Checkpoint, options: ExportOptions) -> dict[str, Any]:
    return {
        "checkpoint": printable(options.source.checkpoint.name),
        "checkpoint_sha256": checkpoint.sha256,
        "reading": list(checkpoint.notes),
        "versions": {name: found for name in _VERSIONS_OF if (found := _version(name)) is not None},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
