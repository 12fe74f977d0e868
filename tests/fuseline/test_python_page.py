"""The examples of docs/python.md, each run as a program of its own against a real server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fuseline
from tests.serve.processes import FAST, ROOT, server_process

PAGE = (ROOT / "docs" / "python.md").read_text()
ADDRESS = "127.0.0.1:8001"

_CODE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
EXAMPLES = {
    f"{heading} {number}": code
    for heading, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    for number, code in enumerate(_CODE.findall(text), start=1)
}
PRINTED = {
    "Classify 1": r"(\d: [\d.]+%\n){5}",
    "Classify 2": r"tiny: 10 classes, 32 x 32, fp32 on onnxruntime\n(\d \(10,\)\n){2}",
    "Many at once 1": r"\['\d', '\d'\]\n",
    "Streams 1": r"(?s)(?=.*photos/broken\.jpg was refused: .+)(?=.*photos/0\.jpg \d\n).*",
    "Errors 1": r"no image: .+\n",
    "Export 1": r"(?s)model\.onnx on onnxruntime \(CPU\): 100\.00% agreement with PyTorch\n.*",
    "Read a package 1": r"tiny \(32, 32, 3\) \(.*\)\nmodel\.onnx fp32 \w{12}\nmodel\.fp16\.onnx fp16 \w{12}\n",
}
"""What each example prints."""


@pytest.fixture(scope="module")
def address(tiny_package: Path) -> Iterator[str]:
    with server_process(tiny_package, *FAST) as server:
        yield server.address


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """What the examples find where they run."""
    (tmp_path / "photos").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    names = ("cat.jpg", "dog.jpg", *(f"photos/{number}.jpg" for number in range(8)))
    for name, pixels in zip(names, pictures, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    shutil.copy(tiny_checkpoint, tmp_path / "resnet18.pt")
    return tmp_path


def test_each_example_is_expected_to_print_something() -> None:
    assert list(EXAMPLES) == list(PRINTED)


@pytest.mark.parametrize("example", [name for name in EXAMPLES if "Client" in EXAMPLES[name]])
def test_an_example_of_the_clients_prints_answers(example: str, folder: Path, address: str) -> None:
    (folder / "photos" / "broken.jpg").write_text("no picture")
    assert ADDRESS in EXAMPLES[example]
    _check(example, folder, EXAMPLES[example].replace(ADDRESS, address))


def test_the_example_of_an_export_exports(folder: Path) -> None:
    _check("Export 1", folder, EXAMPLES["Export 1"])
    assert fuseline.load_package(folder / "resnet18").find("onnx", "fp16") is not None


def test_the_example_of_a_package_reads_it(folder: Path, tiny_package: Path) -> None:
    shutil.copytree(tiny_package, folder / "resnet18")
    _check("Read a package 1", folder, EXAMPLES["Read a package 1"])


def test_the_page_names_every_error() -> None:
    errors = {name for name in fuseline.__all__ if name.endswith("Error")}
    assert {name for name in errors if f"`{name}`" not in PAGE} == set()


def _check(example: str, folder: Path, code: str) -> None:
    """Run the example's `code` in `folder`; it must succeed and print what is expected."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTED[example], done.stdout), done.stdout
