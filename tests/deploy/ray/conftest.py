"""What a replica answers by, without a cluster."""

import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model_source import PackageModels
from fuseline.serve.server_core import ServerCore
from fuseline.serve.settings import Settings
from tests.fakes.colours import write_colours_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model."""
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


class StartCore(Protocol):
    async def __call__(self, *, name: str = "", **changes: Any) -> ServerCore: ...


@pytest.fixture
async def start_core(package: Path) -> AsyncIterator[StartCore]:
    """Start cores: `core = await start_core(max_batch=4)`. They are finished and closed at the end."""
    async with AsyncExitStack() as stack:

        async def start(*, name: str = "", **changes: Any) -> ServerCore:
            settings = Settings(**({"http_port": 0, "backend": "onnxruntime", "threads": 1} | changes))
            metrics = Metrics()
            source = PackageModels([package], settings, metrics, name=name)
            core = ServerCore(settings, source, metrics, control=source.control)
            core.watch_liveness()
            await core.load()
            core.ready = True

            async def end() -> None:
                if core.ready:
                    await core.finish()
                await core.close()

            stack.push_async_callback(end)
            return core

        yield start


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A `RayCluster` of a head and two nodes, for the checks; each leaves it without an application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.deploy.ray.cluster import ray_cluster

        with ray_cluster(2) as its:
            its.start_serve()
            yield its


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose model costs next to nothing."""
    return write_tiny_package(tmp_path_factory.mktemp("packages") / "tiny", side=32, classes=10)
