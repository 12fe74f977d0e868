"""Real models for routes to lead to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.model import Model, load_model
from tests.fakes.batch_counts import RecordedBatches
from tests.fakes.colours import BIASES, LABELS, write_colours_package
from tests.serve.conftest import settings

TURNED = LABELS[::-1]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of one network: `stable` 3, `canary` 4, which takes everything for more green, and such as differ."""
    folder = tmp_path_factory.mktemp("routed")
    write_colours_package(folder / "stable", name="stable", version="3")
    write_colours_package(
        folder / "canary", name="canary", version="4", biases=BIASES + np.array([0, 0.5, 0, 0], np.float32)
    )
    write_colours_package(folder / "turned", name="turned", version="1", labels=TURNED)
    write_colours_package(folder / "floats", name="floats", version="1", takes="fp32-nchw")
    return folder


@pytest.fixture(scope="module")
def load(packages: Path) -> Callable[[str], Model]:
    """Load one of `packages`, once for all tests of a module."""
    loaded: dict[str, Model] = {}

    def load_once(name: str) -> Model:
        if name not in loaded:
            loaded[name] = load_model(packages / name, settings(max_batch=4), RecordedBatches())
        return loaded[name]

    return load_once
