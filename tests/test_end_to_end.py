"""A real trained checkpoint, exported and served by the real commands, on real pictures."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseline.export.artifacts import Fp16Options
from fuseline.export.loading.loading import NetworkSource
from fuseline.export.pipeline import ExportOptions, export_checkpoint
from fuseline.export.progress import ConsoleProgress
from fuseline.serve.client import Client
from fuseline.serve.model_package import load_package
from tests.bf16 import CPU_HAS_BF16, needs_bf16
from tests.serve.processes import ServerProcess, server_process

EAGER_RIGHT = 832
"""Of these 1000 JPEGs, by eager PyTorch FP32: ../shared/data/README.md."""


@pytest.fixture(scope="module")
def resnet20_package(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    options = ExportOptions(
        source=NetworkSource(shared_data / "checkpoints" / "resnet20-12fca82f.th"),
        out=folder / "resnet20",
        fp16=Fp16Options(),
        images=shared_data / "cifar10-test",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    export_checkpoint(options, ConsoleProgress())
    return options.out


def test_every_artifact_s_accuracy_on_class_folders_is_eager_pytorch_s(resnet20_package: Path) -> None:
    manifest = load_package(resnet20_package).manifest
    assert manifest.labels == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    right = {(check.artifact, check.backend): check.accuracy for check in manifest.verification}
    assert len(right) == 4 + CPU_HAS_BF16
    assert {check.eager_accuracy for check in manifest.verification} == {EAGER_RIGHT / 1000}
    exact = [check for check in manifest.verification if check.artifact == "model.onnx" and check.precision is None]
    assert [round(1000 * check.accuracy) for check in exact if check.accuracy is not None] == [EAGER_RIGHT] * 2
    assert all(abs(round(1000 * share) - EAGER_RIGHT) <= 3 for share in right.values())


@pytest.fixture(
    params=[
        ("onnxruntime", "fp32", 1),
        ("openvino", "fp32", 1),
        ("onnxruntime", "fp16", 3),
        pytest.param(("openvino", "bf16", 3), marks=needs_bf16),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def served(request: pytest.FixtureRequest, resnet20_package: Path) -> Iterator[tuple[ServerProcess, int]]:
    backend, precision, tolerance = request.param
    flags = ("--backend", backend, "--precision", precision, "--port", "0", "--http-port", "0")
    with server_process(resnet20_package, *flags) as server:
        yield server, tolerance
        server.process.terminate()
        assert server.end()[0] == 0


def test_the_trained_resnet20_is_right_as_often_served_as_in_pytorch(
    served: tuple[ServerProcess, int], shared_data: Path
) -> None:
    server, tolerance = served
    pictures = sorted((shared_data / "cifar10-test").glob("*/*.jpg"))
    assert len(pictures) == 1000
    right = 0
    with Client(server.address) as client:
        for start in range(0, len(pictures), 50):
            chunk = pictures[start : start + 50]
            answer = client.classify(chunk)
            right += sum(
                result.predictions[0].label == path.parent.name
                for result, path in zip(answer.results, chunk, strict=True)
            )
    assert abs(right - EAGER_RIGHT) <= tolerance


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_served_resnet18_is_under_400_mib_and_knows_no_torch(tmp_path: Path) -> None:
    import torch
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pt")
    options = ExportOptions(source=NetworkSource(tmp_path / "resnet18.pt"), generated_images=2)
    package = export_checkpoint(options, ConsoleProgress()).folder
    picture = tmp_path / "picture.png"
    _write_picture(picture)
    with server_process(package, "--backend", "onnxruntime", "--port", "0", "--http-port", "0") as server:
        with Client(server.address) as client:
            assert len(client.classify([picture] * 32, top_k=5).results) == 32
        process = Path("/proc") / str(server.process.pid)
        resident = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        assert resident is not None
        assert int(resident[1]) < 400 * 1024
        assert "libtorch" not in (process / "maps").read_text()


def _write_picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
