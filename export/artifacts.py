"""The files of a package that runtimes load: ONNX graphs, and a TensorRT engine where one can be built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.fold import FoldedNetwork
from export.half.overflow_guard import GuardedGraph, guarded_fp16
from export.model_facts import ModelFacts
from export.onnx_graph import onnx_from_network
from export.precision import PrecisionShare, precision_share
from export.progress import Narrator
from serve.backends import DEFAULT_BUCKETS
from serve.backends.engine_builder import build_engine
from serve.backends.engine_precision import KEPT_FP32
from serve.errors import BackendError, BackendUnavailableError
from serve.model_package import Artifact, file_facts

FP32_NAME = "model.onnx"
FP16_NAME = "model.fp16.onnx"


@dataclass(frozen=True, slots=True)
class Fp16Options:
    """How the FP16 graph is made."""

    keep_fp32: tuple[str, ...] = ()
    """Regular expressions on the checkpoint's names of layers that stay in FP32."""
    strict: bool = False
    """Refuse instead of keeping in FP32 what FP16 can't hold."""


@dataclass(frozen=True, slots=True)
class WrittenArtifacts:
    """What was written into the package's folder."""

    artifacts: tuple[Artifact, ...]
    precision: dict[str, PrecisionShare]
    """By path; of ONNX graphs."""
    guarded: GuardedGraph | None
    """The FP16 graph, with what was found on the calibration images."""
    engine_note: str
    """For people: which engine was built, or why none was."""


def write_artifacts(
    folder: Path,
    network: FoldedNetwork,
    facts: ModelFacts,
    *,
    fp16: Fp16Options | None,
    calibration: NDArray[np.uint8],
    layer_names: Mapping[str, str],
    engine_for: str | None,
    narrator: Narrator,
) -> WrittenArtifacts:
    """Write the FP32 graph, the FP16 graph if `fp16`, and an engine of the last of them.

    Args:
        calibration: images (n, h, w, c) on which the FP32 graph shows what FP16 can't hold.
        layer_names: the network's names of layers to the checkpoint's.
        engine_for: a compute capability such as `sm89`, to build ahead of time; None: for the GPU at hand, if any.

    Raises:
        BackendUnavailableError: `engine_for` was given and no engine can be built for it here.
        InputError: `fp16.keep_fp32` is found in no layer's name.
        VerificationError: the engine is not in FP16, or `fp16.strict` and FP16 can't hold every layer.
    """
    metadata = {
        "labels": facts.labels,
        "input": facts.input.model_dump(mode="json"),
        "normalization": facts.normalization.model_dump(mode="json"),
    }
    with narrator.step("Writing the ONNX graph") as step:
        fp32 = onnx_from_network(network, facts.input, metadata)
        artifacts = [_write(folder, FP32_NAME, _bytes(fp32), "onnx", "fp32")]
        shares = {FP32_NAME: precision_share(fp32)}
        for_engine, precision = fp32, "fp32"
        step.done(f"{FP32_NAME}, {_mib(artifacts[-1])}")
    guarded = None
    if fp16 is not None:
        with narrator.step("Writing the FP16 graph") as step:
            guarded = guarded_fp16(
                fp32,
                calibration,
                layer_names=layer_names,
                keep=fp16.keep_fp32,
                strict=fp16.strict,
                on_progress=step.advance_to,
            )
            for_engine, precision = guarded.model, "fp16"
            shares[FP16_NAME] = share = guarded.share
            details = {KEPT_FP32: sorted(guarded.fp32_nodes)}
            artifacts.append(_write(folder, FP16_NAME, _bytes(for_engine), "onnx", precision, details))
            step.done(
                f"{FP16_NAME}, {_mib(artifacts[-1])}, {share.fp16_layers} of {share.layers} layers and "
                f"{share.fp16_multiply_adds / share.multiply_adds:.1%} of the multiply-adds in FP16"
            )
        for kept in guarded.kept:
            if not kept.asked:
                narrator.warn(f"{kept.layer} stays in FP32: {'; '.join(kept.reasons)}")
    with narrator.step("Building the TensorRT engine") as step:
        try:
            built = build_engine(
                _bytes(for_engine),
                precision="fp16" if guarded else "fp32",
                allowed_fp32=guarded.fp32_nodes if guarded else (),
                layer_names=layer_names,
                capability=engine_for,
                max_batch=max(DEFAULT_BUCKETS),
                on_progress=lambda _, done: step.advance_to(done),
            )
        # What was not asked for doesn't fail the export.
        except (BackendUnavailableError, BackendError) as error:
            if engine_for is not None:
                raise
            note = f"no engine: {error}"
        else:
            engine = _write(folder, f"engines/{built.key}.plan", built.plan, built.library, precision, built.details)
            artifacts.append(engine)
            note = f"{engine.path}, {_mib(engine)}"
        step.done(note)
    return WrittenArtifacts(tuple(artifacts), shares, guarded, note)


def _write(
    folder: Path, path: str, data: bytes, format: str, precision: str, details: Mapping[str, Any] | None = None
) -> Artifact:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(data)
    kind = {"format": format, "precision": precision, "details": details or {}}
    return Artifact.model_validate(file_facts(folder, path) | kind)


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _mib(artifact: Artifact) -> str:
    return f"{artifact.bytes / 2**20:.1f} MiB"
