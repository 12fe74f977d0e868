"""One real server with a tiny model, in its own process, for all tests of the benchmarks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from tests.fakes.colours import write_colours_package


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model's package."""
    return write_colours_package(tmp_path_factory.mktemp("benchmarks") / "colours")


@pytest.fixture(scope="session")
def colours_server(colours: Path) -> Iterator[ServerProcess]:
    """A server of it."""
    with started_server(colours, "--backend", "onnxruntime", "--threads", "1") as server:
        yield server
