"""What a replica answers by, without a cluster."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

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
