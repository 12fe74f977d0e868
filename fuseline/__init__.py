"""Fuseline from Python: docs/python.md shows how the public names are used.

All but the errors are imported when they are asked for, so that `import fuseline` imports neither torch nor gRPC.
"""

import importlib
from typing import TYPE_CHECKING

from fuseline.serve.errors import (
    ArchitectureError,
    BackendError,
    BackendLostError,
    BackendUnavailableError,
    CheckpointError,
    DeadlineError,
    ForbiddenError,
    FuselineError,
    ImageError,
    InputError,
    ModelControlError,
    OverloadedError,
    PackageError,
    PlanError,
    RegionExistsError,
    RequestError,
    SharedMemoryUnavailableError,
    ShuttingDownError,
    UnauthenticatedError,
    UnknownModelError,
    UnknownRegionError,
    VerificationError,
)

if TYPE_CHECKING:
    from fuseline.export.artifacts import Fp16Options, Int8Options
    from fuseline.export.loading.loading import NetworkSource
    from fuseline.export.pipeline import ExportOptions, ExportResult, export_checkpoint
    from fuseline.serve.client import Answer, AsyncClient, Client, ImageAnswer, ImageLike, Prediction, StreamAnswer
    from fuseline.serve.model_description import ModelDescription
    from fuseline.serve.model_package import Manifest, ModelPackage, load_package

__all__ = [
    "Answer",
    "ArchitectureError",
    "AsyncClient",
    "BackendError",
    "BackendLostError",
    "BackendUnavailableError",
    "CheckpointError",
    "Client",
    "DeadlineError",
    "ExportOptions",
    "ExportResult",
    "ForbiddenError",
    "Fp16Options",
    "FuselineError",
    "ImageAnswer",
    "ImageError",
    "ImageLike",
    "InputError",
    "Int8Options",
    "Manifest",
    "ModelControlError",
    "ModelDescription",
    "ModelPackage",
    "NetworkSource",
    "OverloadedError",
    "PackageError",
    "PlanError",
    "Prediction",
    "RegionExistsError",
    "RequestError",
    "SharedMemoryUnavailableError",
    "ShuttingDownError",
    "StreamAnswer",
    "UnauthenticatedError",
    "UnknownModelError",
    "UnknownRegionError",
    "VerificationError",
    "export_checkpoint",
    "load_package",
]

_MODULE_OF_NAME = {
    "Answer": "fuseline.serve.client",
    "AsyncClient": "fuseline.serve.client",
    "Client": "fuseline.serve.client",
    "ExportOptions": "fuseline.export.pipeline",
    "ExportResult": "fuseline.export.pipeline",
    "Fp16Options": "fuseline.export.artifacts",
    "ImageAnswer": "fuseline.serve.client",
    "ImageLike": "fuseline.serve.client",
    "Int8Options": "fuseline.export.artifacts",
    "Manifest": "fuseline.serve.model_package",
    "ModelDescription": "fuseline.serve.model_description",
    "ModelPackage": "fuseline.serve.model_package",
    "NetworkSource": "fuseline.export.loading.loading",
    "Prediction": "fuseline.serve.client",
    "StreamAnswer": "fuseline.serve.client",
    "export_checkpoint": "fuseline.export.pipeline",
    "load_package": "fuseline.serve.model_package",
}
"""Public names that are imported when they are asked for."""


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
