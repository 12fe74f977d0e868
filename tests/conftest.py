"""Fixtures that more than one folder of tests needs. torch is imported only by the tests that ask for them."""

from pathlib import Path

import pytest

from tests.commands import Outcome, Run, exit_code

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real checkpoints and pictures, which lie beside the checkout where they are at all."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data, with real checkpoints and pictures, is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR ResNet-18 of width 8 with random weights, saved as training scripts do."""
    import torch

    from tests.export.resnets import tiny_network

    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pt"
    torch.save({"state_dict": tiny_network().state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of `tiny_checkpoint`, FP32 and FP16."""
    from fuseline.export.artifacts import Fp16Options
    from fuseline.export.loading.loading import NetworkSource
    from fuseline.export.pipeline import ExportOptions, export_checkpoint
    from fuseline.export.progress import ConsoleProgress

    out = tmp_path_factory.mktemp("packages") / "tiny"
    options = ExportOptions(NetworkSource(tiny_checkpoint), out=out, fp16=Fp16Options())
    export_checkpoint(options, ConsoleProgress())
    return out


@pytest.fixture
def run_fuseline(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `fuseline ARGUMENTS` in this process, on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        return Outcome(exit_code("fuseline", *arguments), *capfd.readouterr())

    return run
