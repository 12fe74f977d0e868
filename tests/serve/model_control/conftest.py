"""Controls of real tiny models, in this event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fuseline.serve.lanes.lane_choice import LaneChoice
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model, load_model
from fuseline.serve.model_control.control import IndexEntry
from fuseline.serve.model_control.local_control import LocalModelControl
from fuseline.serve.repository import Repository
from tests.fakes.clock import Clock
from tests.fakes.colours import noise
from tests.serve.conftest import settings
from tests.serve.model_control.repositories import content_of


class Controlled:
    """A control, what it serves, and how often it loaded."""

    def __init__(
        self,
        root: Path,
        free: Callable[[], int] | None,
        packages: tuple[Path, ...],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        **changes: Any,
    ) -> None:
        self.clock = Clock()
        self.metrics = Metrics(clock=self.clock)
        self.repository = Repository()
        self.loads: list[tuple[str, str]] = []
        """Name and version of every package that was loaded, or tried."""
        self._settings = settings(**({"model_repository": (root,), "max_batch": 4} | changes))
        more: dict[str, Any] = {} if free is None else {"free": free}
        more |= {"sleep": sleep, "clock": clock}
        self.during_load: Callable[[], object] = lambda: None
        """Called in the thread that loads, once the package was chosen and before it is read."""
        self.control = LocalModelControl(packages, self._settings, self.metrics, self._load, **more)

    def _load(self, folder: Path, name: str, version: str, beside: LaneChoice | None) -> Model:
        self.loads.append((name, version))
        self.during_load()
        return load_model(folder, self._settings, self.metrics, name=name, version=version, beside=beside)

    async def start(self) -> None:
        await self.control.start(self.repository)

    async def content(self, name: str, version: str = "") -> int:
        """What answers a request for the model."""
        pixels = noise(1)
        batched = await self.repository.find(name, version).batcher.submit(list(pixels))
        return content_of(batched.logits, pixels)

    async def index(self, *, ready: bool = False) -> dict[tuple[str, str], IndexEntry]:
        return {(line.name, line.version): line for line in await self.control.index(ready=ready)}

    def refusals(self) -> float:
        """How often a package was refused."""
        samples = [its for metric in self.metrics.registry.collect() for its in metric.samples]
        return sum(
            its.value
            for its in samples
            if its.name == "fuseline_model_loads_total" and its.labels["outcome"] == "refused"
        )

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


StartControl = Callable[..., Any]


@pytest.fixture
async def start_control(tmp_path: Path) -> AsyncIterator[StartControl]:
    """Start controls of `tmp_path / "models"`: `controlled = await start_control(model_control_mode="poll")`.

    With `again`, that is done as in a process that is started in the place of one which had served those models.
    """
    root = tmp_path / "models"
    root.mkdir()
    async with AsyncExitStack() as stack:

        async def start(
            free: Callable[[], int] | None = None,
            packages: tuple[Path, ...] = (),
            again: tuple[str, ...] | None = None,
            on_wait: Callable[[list[IndexEntry]], None] = lambda _: None,
            **changes: Any,
        ) -> Controlled:
            controlled = Controlled(root, free, packages, **changes)
            await stack.enter_async_context(_closing(controlled))
            if again is None:
                await controlled.start()
            else:
                await controlled.control.start_again(controlled.repository, again, on_wait)
            return controlled

        yield start


@asynccontextmanager
async def _closing(controlled: Controlled) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await controlled.control.close()
        await controlled.repository.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository of `start_control`."""
    return tmp_path / "models"
