"""The wheel and the sdist of this checkout."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pythons import uv

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distributions:
    """Both, as they are built from the checkout."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Wheel and sdist, each built from the checkout itself."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--wheel", "--sdist", "--out-dir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Distributions(wheel, sdist)
