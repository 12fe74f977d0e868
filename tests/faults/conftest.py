"""Real servers with a tiny real model, under load."""

from pathlib import Path

import pytest

from tests.fakes.colours import write_colours_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model."""
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")
