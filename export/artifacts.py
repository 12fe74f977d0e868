"""The files of a package that runtimes load: ONNX graphs, and a TensorRT engine where one can be built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.engine import build_engine
from export.fold import FoldedNetwork
from export.model_facts import ModelFacts
from export.onnx_graph import onnx_from_network, with_cast_first
from export.precision import PrecisionShare, check_fp16, fp16_from_fp32, precision_share
from export.progress import Narrator
from serve.backends import DEFAULT_BUCKETS
from serve.errors import BackendError, BackendUnavailableError
from serve.model_package import Artifact, file_facts

FP32_NAME = "model.onnx"
FP16_NAME = "model.fp16.onnx"


@dataclass(frozen=True, slots=True)
class WrittenArtifacts:
    """What was written into the package's folder."""

    artifacts: tuple[Artifact, ...]
    precision: dict[str, PrecisionShare]
    """By path; of ONNX graphs."""
    engine_note: str
    """For people: which engine was built, or why none was."""


def write_artifacts(
    folder: Path, network: FoldedNetwork, facts: ModelFacts, *, fp16: bool, engine_for: str | None, narrator: Narrator
) -> WrittenArtifacts:
    """Write the FP32 graph, the FP16 graph if `fp16`, and an engine of the last of them.

    Args:
        engine_for: a compute capability such as `sm89`, to build ahead of time; None: for the GPU at hand, if any.

    Raises:
        BackendUnavailableError: `engine_for` was given and no engine can be built for it here.
        VerificationError: the FP16 graph or the engine is not in FP16.
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
        for_engine, precision = with_cast_first(fp32), "fp32"
        step.done(f"{FP32_NAME}, {_mib(artifacts[-1])}")
    if fp16:
        with narrator.step("Writing the FP16 graph") as step:
            for_engine, precision = fp16_from_fp32(fp32), "fp16"
            shares[FP16_NAME] = share = check_fp16(for_engine)
            artifacts.append(_write(folder, FP16_NAME, _bytes(for_engine), "onnx", precision))
            step.done(f"{FP16_NAME}, {_mib(artifacts[-1])}, {share.fp16_layers} of {share.layers} layers FP16")
    with narrator.step("Building the TensorRT engine") as step:
        try:
            built = build_engine(
                _bytes(for_engine),
                precision="fp16" if fp16 else "fp32",
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
    return WrittenArtifacts(tuple(artifacts), shares, note)


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
