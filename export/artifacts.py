"""The files of a package that runtimes load: ONNX graphs, and a TensorRT engine where one can be built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.facts.model_facts import ModelFacts
from fuseline.export.folding.fold import FoldedNetwork
from fuseline.export.fp16.mixed_precision import MixedFp16Graph, mixed_fp16_from_fp32
from fuseline.export.graph.graph_input import INPUT_KEY, NORMALIZATION_KEY
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.export.graph.precision_share import PrecisionShare, precision_share
from fuseline.export.graph.runtimes import serialised
from fuseline.export.graph.tensor_names import with_tensor_names
from fuseline.export.int8.int8_graph import Int8Graph, calibrate, int8_from_fp32
from fuseline.export.progress import Progress
from fuseline.export.sample import Sample
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.backends.engine.precision import KEPT_FP32
from fuseline.serve.backends.onnx_artifact import READ_BY, Reader
from fuseline.serve.batching.policy import DEFAULT_MAX_BATCH
from fuseline.serve.errors import BackendError, BackendUnavailableError, VerificationError
from fuseline.serve.model_package import Artifact, Task, file_facts
from fuseline.serve.precision import PRECISIONS, PrecisionName

FP32_NAME = "model.onnx"
FP16_NAME = "model.fp16.onnx"
INT8_NAME = "model.int8.onnx"
INT8_TENSORRT_NAME = "model.int8.tensorrt.onnx"
_READER_OF_INT8: Mapping[str, Reader] = {INT8_NAME: "cpu", INT8_TENSORRT_NAME: "tensorrt"}


@dataclass(frozen=True, slots=True)
class Fp16Options:
    """How the FP16 graph is made."""

    keep_fp32: tuple[str, ...] = ()
    """Regular expressions on the checkpoint's names of layers that stay in FP32."""
    strict: bool = False
    """Whether a layer that FP16 can't hold is refused instead of kept in FP32."""


@dataclass(frozen=True, slots=True)
class Int8Options:
    """How the INT8 graphs are made."""

    bar: float = PRECISIONS["int8"].min_agreement
    """Smallest share of held-out images that must have eager PyTorch's top-1 class, or its set of labels."""


@dataclass(frozen=True, slots=True)
class WrittenArtifacts:
    """What was written into the package's folder."""

    artifacts: tuple[Artifact, ...]
    precision: dict[str, PrecisionShare]
    """Path of each ONNX graph in floats to its share of FP16."""
    fp16: MixedFp16Graph | None
    """The FP16 graph, with what was found on the calibration images."""
    int8: dict[str, Int8Graph]
    """Path to INT8 graph: the CPUs' and, where it keeps the bar too, TensorRT's, which is another graph."""
    int8_warnings: tuple[str, ...]
    engine_note: str
    """Which engine was built, or why none was, for people."""


def write_artifacts(
    folder: Path,
    network: FoldedNetwork,
    facts: ModelFacts,
    *,
    fp16: Fp16Options | None,
    int8: Int8Options | None,
    sample: Sample,
    eager: NDArray[np.float32],
    layer_names: Mapping[str, str],
    output_name: str,
    engine_for: str | None,
    progress: Progress,
) -> WrittenArtifacts:
    """Write the FP32 graph, the graphs of `fp16` and `int8`, and an engine of the FP16 graph or, without it, of FP32's.

    Args:
        sample: images on which the FP32 graph shows what FP16 can't hold; INT8 is calibrated on those that it is not
            judged by.
        eager: eager PyTorch's FP32 logits (n, classes) of `sample`.
        layer_names: the network's names of layers to the checkpoint's.
        output_name: name of every graph's output; `facts.input` has that of the input.
        engine_for: compute capability such as `sm89`, for which the engine is built without a GPU; None: the GPU at
            hand, if any.

    Raises:
        BackendUnavailableError: `engine_for` is given and no engine can be built for it here.
        InputError: `fp16.keep_fp32` is found in no layer's name, or INT8 has too few images.
        VerificationError: the engine is not in FP16; FP16 can't hold every layer, and `fp16.strict`; or INT8 doesn't
            keep its bar on CPUs.
    """
    metadata = {
        "labels": facts.labels,
        INPUT_KEY: facts.input.model_dump(mode="json", exclude={"name"}),
        NORMALIZATION_KEY: facts.normalization.model_dump(mode="json"),
        "task": facts.task,
    }
    input_name = facts.input.name

    def graph_file(model: onnx.ModelProto) -> bytes:
        """Return the file of a graph, whose tensors then have the names that clients know."""
        return serialised(with_tensor_names(model, input_name, output_name))

    precision: PrecisionName = "fp32"
    with progress.step("Writing the ONNX graph") as step:
        fp32 = onnx_from_network(network, facts.input, metadata)
        artifacts = [_write(folder, FP32_NAME, graph_file(fp32), "onnx", precision)]
        shares = {FP32_NAME: precision_share(fp32, "fp16")}
        for_engine = fp32
        spec = facts.input
        takes = f"; {spec.name} is {spec.datatype} {spec.layout} in, {output_name} FP32 out"
        step.done(f"{FP32_NAME}, {_mib(artifacts[-1])}{takes if spec.format.normalised else ''}")
    mixed = None
    if fp16 is not None:
        with progress.step("Writing the FP16 graph") as step:
            mixed = mixed_fp16_from_fp32(
                fp32,
                sample.pixels,
                layer_names=layer_names,
                keep=fp16.keep_fp32,
                strict=fp16.strict,
                on_progress=step.advance_to,
            )
            for_engine, precision = mixed.model, "fp16"
            shares[FP16_NAME] = share = mixed.share
            details = {KEPT_FP32: sorted(mixed.fp32_nodes)}
            artifacts.append(_write(folder, FP16_NAME, graph_file(for_engine), "onnx", precision, details))
            step.done(
                f"{FP16_NAME}, {_mib(artifacts[-1])}, {share.own_layers} of {share.layers} layers and "
                f"{share.of_multiply_adds:.1%} of the multiply-adds in FP16"
            )
        for kept in mixed.kept:
            if not kept.asked:
                progress.warn(f"{kept.layer} stays in FP32: {'; '.join(kept.reasons)}")
    quantised: dict[str, Int8Graph] = {}
    int8_warnings: tuple[str, ...] = ()
    if int8 is not None:
        quantised, int8_warnings = _int8_graphs(fp32, sample, eager, facts.task, layer_names, int8.bar, progress)
        for path, graph in quantised.items():
            int8_details = {KEPT_FP32: sorted(graph.fp32_nodes), READ_BY: _READER_OF_INT8[path]}
            artifacts.append(_write(folder, path, graph_file(graph.model), "onnx", "int8", int8_details))
    with progress.step("Building the TensorRT engine") as step:
        try:
            built = build_engine(
                graph_file(for_engine),
                precision=precision,
                input_name=input_name,
                output_name=output_name,
                allowed_fp32=mixed.fp32_nodes if mixed else (),
                layer_names=layer_names,
                capability=engine_for,
                max_batch=DEFAULT_MAX_BATCH,
                on_progress=lambda _, done: step.advance_to(done),
            )
        # An engine that nobody asked for doesn't fail the export.
        except (BackendUnavailableError, BackendError) as error:
            if engine_for is not None:
                raise
            note = f"no engine: {error}"
        else:
            engine = _write(folder, f"engines/{built.key}.plan", built.plan, built.library, precision, built.details)
            artifacts.append(engine)
            note = f"{engine.path}, {_mib(engine)}"
        step.done(note)
    return WrittenArtifacts(tuple(artifacts), shares, mixed, quantised, int8_warnings, note)


def _int8_graphs(
    fp32: onnx.ModelProto,
    sample: Sample,
    eager: NDArray[np.float32],
    task: Task,
    layer_names: Mapping[str, str],
    bar: float,
    progress: Progress,
) -> tuple[dict[str, Int8Graph], tuple[str, ...]]:
    held_out = sample.judging("int8")
    with progress.step("Calibrating INT8") as step:
        calibrated = calibrate(
            fp32,
            sample.pixels[~held_out],
            sample.pixels[held_out],
            eager[held_out],
            task=task,
            on_progress=step.advance_to,
        )
        step.done(f"{len(calibrated.images.held_out)} of the images held out")
    graphs = {}
    with progress.step("Quantising to INT8") as step:
        graphs[INT8_NAME] = graph = int8_from_fp32(
            calibrated, layer_names=layer_names, bar=bar, on_progress=step.advance_to
        )
        step.done(graph.described)
    warnings = graph.warnings
    with progress.step("Quantising to INT8 for TensorRT") as step:
        try:
            graphs[INT8_TENSORRT_NAME] = graph = int8_from_fp32(
                calibrated, layer_names=layer_names, bar=bar, form="tensorrt", on_progress=step.advance_to
            )
            step.done(graph.described)
        # Its activations have half as many levels as the CPUs', whose graph is good without it.
        except VerificationError as error:
            warnings = (*warnings, f"there is no INT8 graph for TensorRT: {error}")
            step.done("left out")
    for warning in warnings:
        progress.warn(warning)
    return graphs, warnings


def _write(
    folder: Path, path: str, data: bytes, format: str, precision: str, details: Mapping[str, Any] | None = None
) -> Artifact:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(data)
    kind = {"format": format, "precision": precision, "details": details or {}}
    return Artifact.model_validate(file_facts(folder, path) | kind)


def _mib(artifact: Artifact) -> str:
    return f"{artifact.bytes / 2**20:.1f} MiB"
