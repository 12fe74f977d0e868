"""Inspection of a model package: whether its files are intact, and its network by its FP32 ONNX graph."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fuseline.export.graph.operations import Operation, OperationGraph
from fuseline.export.inspection.fp16_risk import fp16_facts
from fuseline.export.inspection.inspected import AppliedFold, Fp16Look, Inspection, first_filters, layers_of
from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import Artifact, Manifest, ModelPackage, PackageFile

_REPORT = "report.json"
_MAX_REPORT_BYTES = 64 * 2**20
_PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True, eq=False)
class InspectedPackage:
    """A package, and the inspection of its network."""

    manifest: Manifest
    damage: dict[str, str | None]
    """Path of a file to how it differs from the manifest; None if it doesn't."""
    inspection: Inspection | None
    """The inspection of the network; None if it can't be shown."""
    why_no_layers: str | None
    """Why the network can't be shown; None if it is."""

    def check_intact(self) -> None:
        """Raise `PackageError` naming every file that is missing or differs from the manifest."""
        if found := [text for text in self.damage.values() if text is not None]:
            raise PackageError("; ".join(found))


def inspect_package(package: ModelPackage) -> InspectedPackage:
    """Inspect `package`. Damaged files are reported in the result, not raised.

    Raises:
        PackageError: the FP32 ONNX graph is intact by the manifest, but can't be read.
    """
    manifest = package.manifest
    damage = {file.path: _damage(package, file) for file in (*manifest.artifacts, manifest.reference)}
    graph = package.find("onnx", "fp32")
    assert graph is not None, "a manifest lists an FP32 ONNX graph, or is not valid"
    inspection = why = None
    if damage[graph.path] is not None:
        why = f"{graph.path} is damaged, so its layers aren't shown"
    elif find_spec("onnx") is None:
        why = "layers are shown where onnx is installed: pip install 'fuseline[export]'"
    else:
        inspection = _inspect_graph(package, graph)
    return InspectedPackage(manifest, damage, inspection, why)


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Fold(_Loose):
    convolution: str
    batchnorm: str
    largest_gain: float


class _Kept(_Loose):
    batchnorm: str
    reason: str


class _Report(_Loose):
    """The parts of report.json that are used, all of them optional, as older exports wrote less."""

    evidence: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    folds: tuple[_Fold, ...] = ()
    kept: tuple[_Kept, ...] = ()
    scale_folded: bool = True


def _inspect_graph(package: ModelPackage, artifact: Artifact) -> Inspection:
    import onnx
    from google.protobuf.message import DecodeError

    from fuseline.export.graph.graph_input import SPATIAL_AXES
    from fuseline.export.graph.onnx_operations import float_elements, operations_from_onnx

    manifest = package.manifest
    try:
        model = onnx.load_model_from_string(package.read(artifact))
    except DecodeError as error:
        raise PackageError(f"{artifact.path} is no ONNX graph: {error}; export the model again") from error
    graph = operations_from_onnx(model, spatial_axes=SPATIAL_AXES[manifest.input.layout])
    report, notes = _report(package.folder)
    if report.scale_folded and manifest.normalization.folded:
        graph = _without_pixel_scale(graph, manifest.normalization.std)
    size = manifest.input
    layers = layers_of(graph, size.height, size.width)
    parameters = float_elements(model)
    reading = manifest.provenance.get("reading")
    return Inspection(
        file=package.folder.resolve().name,
        sha256=artifact.sha256,
        architecture=manifest.architecture,
        evidence=report.evidence,
        unseen=(*(a.line for a in manifest.assumptions if a.is_open), *report.warnings),
        notes=(
            *notes,
            *(str(note) for note in (reading if isinstance(reading, list) else ())),
            *(f"{kept.batchnorm} is not folded: {kept.reason}" for kept in report.kept),
        ),
        classes=manifest.classes,
        input_shape=(size.channels, size.height, size.width),
        parameters=parameters,
        other_parameters=parameters - sum(layer.parameters for layer in layers),
        layers=layers,
        batchnorms=(),
        applied_folds=tuple(AppliedFold(f.convolution, f.batchnorm, f.largest_gain) for f in report.folds),
        fp16=_fp16_look(graph),
        filters=first_filters(graph),
    )


def _fp16_look(graph: OperationGraph) -> Fp16Look:
    return Fp16Look(
        images=None,
        why_no_images="a package's graph is not run here; `fuseline inspect CHECKPOINT` runs the network",
        layers=tuple(
            fp16_facts(operation.name, operation.weight, None)
            for operation in graph.operations
            if operation.kind in ("conv", "transposed conv", "linear")
        ),
        largest_value_at=None,
        largest_value=None,
    )


def _without_pixel_scale(graph: OperationGraph, std: tuple[float, ...]) -> OperationGraph:
    """Return `graph` with the first convolution's weights as trained; an FP16 graph moves the scale to the pixels."""
    scale = np.array([_PIXEL_MAX * value for value in std], np.float32).reshape(1, -1, 1, 1)

    def unscaled(operation: Operation) -> Operation:
        assert operation.weight is not None
        return replace(operation, weight=operation.weight * scale)

    first = next((operation for operation in graph.operations if operation.kind == "conv"), None)
    if first is None or first.weight is None or first.weight.shape[1] != len(std):
        return graph
    return replace(graph, operations=tuple(unscaled(o) if o is first else o for o in graph.operations))


def _report(folder: Path) -> tuple[_Report, tuple[str, ...]]:
    """Return report.json's content, and notes on reading it; no manifest lists it, so it may be missing or broken."""
    path = folder / _REPORT
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            return _Report(), (f"{_REPORT} is larger than {_MAX_REPORT_BYTES} bytes and was not read",)
        return _Report.model_validate_json(path.read_bytes()), ()
    except OSError as error:
        return _Report(), (f"{_REPORT} can't be read: {error.strerror}; what was folded isn't shown",)
    except ValidationError as error:
        return _Report(), (f"{_REPORT} is not as an export writes it ({error.error_count()} faults); it was not used",)


def _damage(package: ModelPackage, file: PackageFile) -> str | None:
    try:
        package.checked_path(file)
    except PackageError as error:
        return str(error)
    return None
