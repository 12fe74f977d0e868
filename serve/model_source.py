"""Where a server's models and the statistics of their requests come from."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.metrics.exposition import metrics_text
from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model, load_model
from fuseline.serve.model_control.local_control import LocalModelControl
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings


class ModelSource(Protocol):
    """What a `Server` gets its models from."""

    @property
    def is_loading(self) -> bool:
        """Whether a thread of this process loads a model, which nothing can interrupt."""
        ...

    async def load(self, repository: Repository) -> None:
        """Add every model to `repository` as soon as it is ready.

        Raises:
            InputError: two models have the same name.
            FuselineError: a model can't be served here.
        """
        ...

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """Return the statistics of each version by `statistics_key`; zeros for one without any requests."""
        ...

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """Return the metrics of all processes in Prometheus' text format, or in OpenMetrics.

        It may be called on any event loop.
        """
        ...

    async def close(self) -> None:
        """Load nothing more, and return once every model that was replaced has answered its last request."""
        ...


class PackageModels:
    """The models of packages, which are computed and counted in this process."""

    def __init__(self, folders: Sequence[Path], settings: Settings, metrics: Metrics, *, name: str = "") -> None:
        """Begin with nothing loaded: `folders` are packages, and the settings say which repositories there are.

        `name` is that of the model of a package among `folders`; empty: the one in its manifest.
        """
        self._metrics = metrics
        packages_name = name

        def load(folder: Path, name: str, version: str, beside: LaneChoice | None) -> Model:
            return load_model(folder, settings, metrics, name=name or packages_name, version=version, beside=beside)

        self.control = LocalModelControl(folders, settings, metrics, load)
        """Loads and unloads the models."""

    @property
    def is_loading(self) -> bool:
        """See `ModelSource.is_loading`."""
        return self.control.is_loading

    async def load(self, repository: Repository) -> None:
        """See `ModelSource.load`. Raises what `load_model` does."""
        await self.control.start(repository)

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """See `ModelSource.statistics`."""
        return self._metrics.statistics

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """See `ModelSource.metrics`."""
        # Formatting takes some milliseconds, in which requests go on.
        return await asyncio.to_thread(metrics_text, self._metrics.registry, open_metrics=open_metrics)

    async def close(self) -> None:
        """See `ModelSource.close`."""
        await self.control.close()
