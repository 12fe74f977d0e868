"""Model repositories of tiny real packages, each version of which answers with logits of its own."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fakes.colours import BIASES, expected_logits, write_colours_package


def biases_of(version: int) -> NDArray[np.float32]:
    """What is added to the logits of `version`, by which its answers are told from others."""
    return BIASES + np.float32(10 * version)


def put(root: Path, name: str, version: int | None = None, *, content: int | None = None, **told: Any) -> Path:
    """Put a package into a repository as exporters do, by renaming, and return its folder.

    Without a `version` the folder of the name is the package. Its answers are those of `content`, by default of the
    version.
    """
    folder = root / name / str(version) if version is not None else root / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.partial"
    number = content if content is not None else version or 1
    told = {key.removeprefix("manifest_"): value for key, value in told.items()}
    write_colours_package(staging, **({"name": name, "biases": biases_of(number)} | told))
    take_away(folder)
    staging.rename(folder)
    return folder


def take_away(folder: Path) -> None:
    """Remove a package as a whole, if it is there."""
    if folder.exists():
        gone = folder.parent / f".{folder.name}.gone"
        folder.rename(gone)
        shutil.rmtree(gone)


def content_of(logits: NDArray[np.float32], pixels: NDArray[np.uint8]) -> int:
    """Return the content that `logits` of `pixels` come from; they are checked against it."""
    content = round(float((logits - expected_logits(pixels)).mean()) / 10)
    np.testing.assert_allclose(logits, expected_logits(pixels, biases=biases_of(content)), atol=1e-4)
    return content
