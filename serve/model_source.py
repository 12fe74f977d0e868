"""Where a server's models and the statistics of their requests come from."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fuseline.serve.metrics.exposition import metrics_text
from fuseline.serve.metrics.inference_statistics import InferenceStatistics
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import load_model
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings


class ModelSource(Protocol):
    """What a `Server` gets its models from."""

    async def load(self, repository: Repository) -> None:
        """Add every model to `repository` as soon as it is ready.

        Raises:
            InputError: two models have the same name.
            FuselineError: a model can't be served here.
        """
        ...

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """Return the statistics of each model by name; zeros for a model without any requests."""
        ...

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """Return the metrics of all processes in Prometheus' text format, or in OpenMetrics.

        It may be called on any event loop.
        """
        ...


class PackageModels:
    """The models of packages, which are computed and counted in this process."""

    def __init__(self, folders: Sequence[Path], settings: Settings, metrics: Metrics) -> None:
        self._folders = folders
        self._settings = settings
        self._metrics = metrics

    async def load(self, repository: Repository) -> None:
        """See `ModelSource.load`. Raises what `load_model` does."""
        for folder in self._folders:
            model = await asyncio.to_thread(load_model, folder, self._settings, self._metrics)
            repository.add(model)
            self._metrics.watch(model)

    async def statistics(self) -> Mapping[str, InferenceStatistics]:
        """See `ModelSource.statistics`."""
        return self._metrics.statistics

    async def metrics(self, *, open_metrics: bool = False) -> bytes:
        """See `ModelSource.metrics`."""
        # Formatting takes some milliseconds, in which requests go on.
        return await asyncio.to_thread(metrics_text, self._metrics.registry, open_metrics=open_metrics)
