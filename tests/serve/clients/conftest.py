"""A server that other people's clients are sent to, and what its model answers, told by the package's backend."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.backends import open_backend
from fuseline.serve.images import decode_for
from fuseline.serve.model_package import load_package
from tests.fakes.colours import LABELS, encoded, noise, write_colours_package
from tests.serve.processes import FAST, ROOT, ServerProcess, free_port, server_process

SCRIPTS = Path(__file__).parent
_FILE_KINDS = {"PNG": (20, 30), "JPEG": (64, 48), "WEBP": (8, 8)}
"""Format to height and width."""


@dataclass(frozen=True)
class Offer:
    """A server, and what is sent to it."""

    server: ServerProcess
    folder: Path
    """Has `pixels.npy` and `files/`."""
    logits: NDArray[np.float32]
    """What the package's backend answers to the pixels, (rows, classes)."""
    file_logits: NDArray[np.float32]
    """What it answers to the files."""

    @property
    def http_address(self) -> str:
        assert self.server.http_address is not None
        return self.server.http_address

    def seen_by(self, environment: str, script: str) -> dict[str, Any]:
        """Return what `script` prints, run by the Python of `environment`, which `make setup` makes."""
        python = ROOT / environment / "bin" / "python"
        if not python.is_file():
            pytest.fail(f"there is no {python}; run `make setup`")
        done = subprocess.run(
            [python, SCRIPTS / script, self.server.address, self.http_address, self.folder],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offer]:
    """`fuseline serve` of the colours package, with HTTP."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "files").mkdir()
    pixels = noise(5)
    np.save(folder / "pixels.npy", pixels)
    for number, (kind, size) in enumerate(_FILE_KINDS.items()):
        picture = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        (folder / "files" / f"{number}.{kind.lower()}").write_bytes(encoded(picture, kind))
    package = write_colours_package(folder / "colours")
    logits, file_logits = logits_by_the_backend(package, pixels, sorted((folder / "files").iterdir()))
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        yield Offer(server, folder, logits, file_logits)


def logits_by_the_backend(
    folder: Path, pixels: NDArray[np.uint8], files: list[Path]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the package in `folder` answers to the pixels and to the files, (rows, classes) each."""
    package = load_package(folder)
    backend, _ = open_backend(package, buckets=(1,), backend="onnxruntime", threads=1)
    try:
        decoded = [decode_for(package.manifest.input, file.read_bytes()) for file in files]
        of_pixels = backend.infer(pixels)
        return of_pixels, backend.infer(np.stack(decoded)) if decoded else of_pixels[:0]
    finally:
        backend.close()


def wrong(seen: dict[str, Any], expected: NDArray[np.float32], *, rtol: float = 1e-5) -> dict[str, Any]:
    """Of ways to what each was answered, those that differ from `expected` (rows, classes); none have to.

    How many rows share a batch is chance, and the runtime rounds differently by the batch's size.
    """
    return {
        way: found
        for way, found in seen.items()
        if isinstance(found, dict)
        or np.shape(found) != expected.shape
        or not np.allclose(found, expected, rtol=rtol, atol=1e-6)
    }


def classes_in(logits: NDArray[np.float32], count: int) -> list[list[tuple[str, float]]]:
    """Of each row the `count` highest classes as (`index:label`, score)."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [(f"{index}:{LABELS[index]}", float(row[index])) for index in best]
        for row, best in zip(logits, order, strict=True)
    ]


def misread(found: Any, logits: NDArray[np.float32], count: int) -> Any:
    """None if elements `score:index:label` say what `classes_in` does, the score to its six digits; else `found`."""
    if isinstance(found, dict) or len(found) != len(logits):
        return found
    for row, expected in zip(found, classes_in(logits, count), strict=True):
        if len(row) != len(expected):
            return found
        for element, (what, score) in zip(row, expected, strict=True):
            told, _, rest = element.partition(":")
            if rest != what or len(told.partition(".")[2]) != 6 or abs(float(told) - score) > 2e-6:
                return found
    return None


def refusals_amiss(seen: dict[str, Any], expected: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Of mistakes to what they raised, those whose status or message isn't what `expected` says (a regex each)."""
    assert set(seen) == set(expected)
    return {
        mistake: seen[mistake]
        for mistake, (status, reason) in expected.items()
        if not isinstance(seen[mistake], dict)
        or not re.fullmatch(status, str(seen[mistake].get("status")))
        or not re.search(reason, seen[mistake].get("message", ""))
    }
