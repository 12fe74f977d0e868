"""What the backend process tells its workers of the models that it serves."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy
from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.model import Model
from fuseline.serve.model_package import Manifest
from fuseline.serve.version_policy import VersionPolicy
from fuseline.serve.workers.arena import ArenaShape


class ServedModel(BaseModel):
    """Everything that a worker has to know about a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Folder of the package, for people: what JSON can't hold of its path is replaced."""
    manifest: Manifest
    backend: BackendFacts
    backend_reason: str
    lanes: LaneChoice
    policy: BatchPolicy
    """Policy of the backend's batcher."""
    version_policy: VersionPolicy | None
    """See `fuseline.serve.model.Model.version_policy`."""

    @property
    def name(self) -> str:
        """Name under which requests find the model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Version under which requests find the model."""
        return self.manifest.version

    @property
    def arena_shape(self) -> ArenaShape:
        """Shape that suffices if all rows that wait, run, or are being answered come from one worker."""
        return ArenaShape(
            row_shape=self.manifest.input.row_shape,
            row_dtype=self.manifest.input.row_dtype,
            classes=self.manifest.classes,
            slots=self.policy.max_queue_rows + (1 + self.policy.lanes) * self.policy.buckets[-1],
        )


class Catalogue(BaseModel):
    """What is served from now on, for a worker that has seen the catalogues before.

    The backend process numbers each model that it loads, and never uses a number again, so that a record that is under
    way while models come and go can't be taken for another model's. A new backend process may give the same models
    other numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    added: dict[int, ServedModel]
    """Models, by number, that are new to the worker."""
    served: tuple[int, ...]
    """Numbers of all models that are served, the new ones included."""


def served_model(model: Model, batcher: Batcher) -> ServedModel:
    """Return what workers have to know about `model` and its batcher."""
    return ServedModel(
        folder=Path(os.fsencode(model.package.folder).decode(errors="replace")),
        manifest=model.manifest,
        backend=model.backend,
        backend_reason=model.backend_reason,
        lanes=model.lanes,
        policy=batcher.policy,
        version_policy=model.version_policy,
    )


def catalogue_for(models: Mapping[int, ServedModel], known: frozenset[int]) -> Catalogue:
    """Return the catalogue of `models`, by number, for a worker that knows those of the numbers `known`."""
    return Catalogue(
        added={number: model for number, model in models.items() if number not in known}, served=tuple(models)
    )
