"""What the page shows of the server and its models beside what happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from fuseline.serve.model import Model
from fuseline.serve.model_package import ModelPackage, Verification
from fuseline.serve.model_settings import settings_of_model
from fuseline.serve.precision import PRECISIONS
from fuseline.serve.settings import Settings

REPORT_HTML = "report.html"
_REPORT_JSON = "report.json"

MAX_REPORT_BYTES = 16 * 2**20
"""Largest report that is read; those of the deepest networks have a few hundred KB."""


def model_facts(
    model: Model,
    bucket_seconds: Mapping[int, float],
    folds: Mapping[str, Any] | None,
    settings: Settings,
    *,
    is_default: bool,
) -> dict[str, Any]:
    """Return what is known of a served model. It asks the file system, so call it in a thread.

    `bucket_seconds` are its batcher's, `folds` what `folds_of` said, `settings` the server's; `is_default` says whether
    requests without a version get this one.
    """
    manifest, backend = model.manifest, model.backend
    own = settings_of_model(settings, manifest)
    graph = model.package.find("onnx", PRECISIONS[backend.precision].graph)
    return {
        "name": model.name,
        "version": model.version,
        "is_default": is_default,
        "architecture": manifest.architecture,
        "task": manifest.task,
        "classes": manifest.classes,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "channels": manifest.input.channels,
        "input_name": manifest.input.name,
        "datatype": model.datatype,
        "takes_pixels": model.takes_pixels,
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "backend_reason": model.backend_reason,
        "half_share": backend.half_share,
        "lanes": model.lanes.model_dump(mode="json"),
        "buckets": [
            {"rows": rows, "ms": round(1000 * bucket_seconds[rows], 3) if rows in bucket_seconds else None}
            for rows in backend.buckets
        ],
        "latency_target_ms": own.latency_target,
        "artifact": None if graph is None else {"path": graph.path, "bytes": graph.bytes, "precision": graph.precision},
        "verification": [_verification(result) for result in manifest.verification],
        "folds": folds,
        "assumptions": [
            assumption.model_dump(mode="json") | {"is_open": assumption.is_open} for assumption in manifest.assumptions
        ],
        "max_images_per_request": own.max_images_per_request,
        "has_report": (model.package.folder / REPORT_HTML).is_file(),
    }


def report_of(package: ModelPackage) -> bytes | None:
    """Return the report of a package as its folder has it; None: it has none, or one that is too large."""
    return _read(package.folder / REPORT_HTML)


class _Fold(BaseModel):
    max_abs_error: Annotated[FiniteFloat, Field(ge=0)]


_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Share(BaseModel):
    fp16_layers: _Count
    layers: _Count
    fp16_weights: _Count
    weights: _Count


class _Report(BaseModel):
    """The members of report.json that are shown."""

    folds: list[_Fold]
    kept: list[Any]
    precision: dict[str, _Share]


def _verification(result: Verification) -> dict[str, Any]:
    return result.model_dump(
        mode="json",
        include={
            "artifact",
            "backend",
            "precision",
            "images",
            "image_source",
            "max_abs_difference",
            "logit_range",
            "bar",
            "passed",
            "accuracy",
            "eager_accuracy",
        },
    ) | {"agreement": result.agreement, "agreement_on": result.agreement_on}


def folds_of(package: ModelPackage) -> dict[str, Any] | None:
    """Return what `folds_in` does of the report of a package; None also where it has none that can be read."""
    report = _read(package.folder / _REPORT_JSON)
    return None if report is None else folds_in(report)


def folds_in(report: bytes) -> dict[str, Any] | None:
    """Return what a report.json says of folds, and of the layers in each artifact's precision; None: nothing readable.

    The report is no part of what a package guarantees: it may be missing, or anything else.
    """
    try:
        read = _Report.model_validate_json(report)
    except ValidationError:
        return None
    return {
        "folded": len(read.folds),
        "kept": len(read.kept),
        "largest_difference": max((fold.max_abs_error for fold in read.folds), default=0.0),
        "share": {path: share.model_dump() for path, share in read.precision.items()},
    }


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REPORT_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_REPORT_BYTES else None
