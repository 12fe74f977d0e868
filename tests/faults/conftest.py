"""Real servers with a tiny real model, under load."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.colours import write_colours_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model."""
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short, as that of a Unix socket must be."""
    with tempfile.TemporaryDirectory(prefix="fl-") as path:
        yield Path(path)
