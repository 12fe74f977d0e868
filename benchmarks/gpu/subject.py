"""A network for the GPU benchmark: its checkpoint, a model package with FP32 and FP16 graphs, and what it has to do."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.work import NetworkWork, network_work
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.subject import ARCHITECTURES, random_checkpoint
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import (
    Artifact,
    Manifest,
    ModelPackage,
    PackageFile,
    file_facts,
    load_package,
    save_manifest,
)
from fuseline.serve.reference import REFERENCE_NAME, write_reference

_NHWC_AXES = (-3, -2)


@dataclass(frozen=True)
class GpuSubject:
    """One network at one input size. Small, so that it travels to processes."""

    title: str
    checkpoint: Path
    package_folder: Path
    input_side: int
    work: NetworkWork

    @cached_property
    def package(self) -> ModelPackage:
        """The package."""
        return load_package(self.package_folder)


@contextmanager
def open_gpu_subject(
    model: str, *, input_side: int | None, rows: int
) -> Iterator[tuple[GpuSubject, NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield the subject called `model`, `rows` pictures for it, and eager PyTorch FP32's logits for them, on the CPU.

    The package lies in a temporary folder and goes afterwards. It is assembled of the export's own steps without its
    verification: every contender is held against the yielded logits before it is timed.

    Args:
        model: one of `fuseline.benchmarks.harness.subject.ARCHITECTURES`, which gets random weights, or a checkpoint.
        input_side: height and width in pixels; None: the network's own.
        rows: the largest batch.

    Raises:
        InputError: `model` is neither, or can't be exported.
    """
    check_model(model)
    path = Path(model)
    with tempfile.TemporaryDirectory(prefix="fuseline-gpu-") as temporary:
        folder = Path(temporary)
        checkpoint = path.resolve() if path.is_file() else random_checkpoint(model, folder)
        package = folder / "package"
        package.mkdir()
        yield _assemble(path.stem, checkpoint, package, input_side, rows)


def check_model(model: str) -> None:
    """Raise `InputError` if `open_gpu_subject` would refuse the name; lets a caller know before long work."""
    if model not in ARCHITECTURES and not Path(model).is_file():
        raise InputError(f"--model {model}: neither a checkpoint nor one of {', '.join(ARCHITECTURES)}")


def _assemble(
    title: str, checkpoint: Path, folder: Path, input_side: int | None, rows: int
) -> tuple[GpuSubject, NDArray[np.uint8], NDArray[np.float32]]:
    import torch

    from fuseline.export.eager import eager_logits
    from fuseline.export.facts.model_facts import facts_from
    from fuseline.export.folding.fold import fold_network
    from fuseline.export.fp16.fp16_graph import fp16_from_fp32
    from fuseline.export.graph.onnx_graph import onnx_from_network
    from fuseline.export.graph.onnx_operations import operations_from_onnx
    from fuseline.export.graph.precision_share import check_share
    from fuseline.export.loading.loading import NetworkSource, network_of, read_source

    source = NetworkSource(checkpoint)
    read = read_source(source)
    size = None if input_side is None else (input_side, input_side)
    trained = network_of(read, source, size)
    facts = facts_from(read, trained, input_size=size)
    pixels = generated_pictures(facts.input.pixel_shape, rows)
    expected = eager_logits(trained.module, pixels, facts.normalization, lambda _: None)
    folded = fold_network(
        trained.module,
        mean=facts.normalization.mean,
        std=facts.normalization.std,
        probe=torch.zeros((1, facts.input.channels, facts.input.height, facts.input.width)),
    )
    fp32 = onnx_from_network(folded, facts.input, {})
    fp16 = fp16_from_fp32(fp32)
    check_share(fp16, "fp16")
    write_reference(folder, pixels, expected)
    save_manifest(
        folder,
        Manifest(
            name=title,
            architecture=trained.architecture,
            input=facts.input,
            normalization=facts.normalization,
            labels=facts.labels,
            artifacts=(
                _artifact(folder, "model.onnx", fp32.SerializeToString(), "fp32"),
                _artifact(folder, "model.fp16.onnx", fp16.SerializeToString(), "fp16"),
            ),
            reference=PackageFile.model_validate(file_facts(folder, REFERENCE_NAME)),
            provenance={},
        ),
    )
    work = network_work(operations_from_onnx(fp32, _NHWC_AXES))
    return GpuSubject(title, checkpoint, folder, facts.input.height, work), pixels, expected


def _artifact(folder: Path, name: str, graph: bytes, precision: str) -> Artifact:
    (folder / name).write_bytes(graph)
    kind: dict[str, Any] = {"format": "onnx", "precision": precision}
    return Artifact.model_validate(file_facts(folder, name) | kind)
