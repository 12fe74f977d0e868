"""Files whose names are in no encoding are exported like any other."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuseline.export.commands.inspect_command import inspect
from fuseline.export.loading.loading import NetworkSource
from fuseline.export.pipeline import ExportOptions, export_checkpoint
from fuseline.export.progress import ConsoleProgress
from fuseline.serve.model_package import load_package

NAME = os.fsdecode(b"r\xe9")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.pt"
    shutil.copy(tiny_checkpoint, path)
    return path


def test_the_package_is_written(checkpoint: Path, tmp_path: Path) -> None:
    images = tmp_path / f"pictures-{NAME}"
    images.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}{NAME}.png")
    options = ExportOptions(NetworkSource(checkpoint), out=tmp_path / "out", images=images)
    export_checkpoint(options, ConsoleProgress())
    manifest = load_package(tmp_path / "out").manifest
    assert manifest.provenance["checkpoint"] == r"r\udce9.pt"
    assert manifest.verification[0].image_source.endswith(r"pictures-r\udce9")


def test_the_page_of_an_inspection_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(checkpoint, html=tmp_path / "page.html")
    assert r"r\udce9.pt" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert r"r\udce9.pt" in capsys.readouterr().out
