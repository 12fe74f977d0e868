"""What is benchmarked: a model package, and the checkpoint that it was exported from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import MANIFEST_NAME, ModelPackage, load_package

TORCHVISION_ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
SMALL_ARCHITECTURE = "resnet8"
"""A CIFAR ResNet-8 of half the usual width: quick to try the benchmarks with."""
ARCHITECTURES = (SMALL_ARCHITECTURE, *TORCHVISION_ARCHITECTURES)
_SEED = 0
_GENERATED_IMAGES = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """A package and, for comparison with eager PyTorch, its checkpoint. Small, so that it travels to processes."""

    title: str
    package_folder: Path
    checkpoint: Path | None

    @property
    def package(self) -> ModelPackage:
        """The package, read again."""
        return load_package(self.package_folder)


@contextmanager
def open_subject(model: str, checkpoint: Path | None = None, *, int8: bool = False) -> Iterator[Subject]:
    """Yield the subject called `model`; what had to be made for it lies in a temporary folder and goes afterwards.

    Args:
        model: a package's folder; or one of `ARCHITECTURES`, which gets random weights and is exported; or a
            checkpoint, which is exported.
        checkpoint: that of the package `model`, if there is one to compare with.
        int8: export with INT8 too what has to be exported.

    Raises:
        InputError: `model` is none of these, or can't be exported.
        VerificationError: the export of it differs from eager PyTorch.
    """
    path = Path(model)
    if (path / MANIFEST_NAME).is_file():
        if checkpoint is not None and not checkpoint.is_file():
            raise InputError(f"--checkpoint {checkpoint}: there is no such file")
        package = load_package(path)
        yield Subject(package.manifest.name, path.resolve(), checkpoint.resolve() if checkpoint else None)
        return
    if checkpoint is not None:
        raise InputError(f"--checkpoint goes with a model package, and {model} is none; give one or the other alone")
    if model not in ARCHITECTURES and not path.is_file():
        raise InputError(
            f"{model} is neither a model package nor a checkpoint, nor one of {', '.join(ARCHITECTURES)}; "
            "`fuseline export CHECKPOINT` makes a package"
        )
    with tempfile.TemporaryDirectory(prefix="fuseline-bench-") as folder:
        source = path.resolve() if path.is_file() else random_checkpoint(model, Path(folder))
        yield Subject(path.stem, _export(source, Path(folder) / path.stem, int8), source)


def _export(checkpoint: Path, destination: Path, int8: bool) -> Path:
    from fuseline.export.artifacts import Int8Options
    from fuseline.export.int8.calibration_images import MIN_IMAGES
    from fuseline.export.loading.loading import NetworkSource
    from fuseline.export.pipeline import ExportOptions, export_checkpoint

    options = ExportOptions(
        NetworkSource(checkpoint),
        out=destination,
        generated_images=2 * MIN_IMAGES if int8 else _GENERATED_IMAGES,
        # Speed is asked for: every layer in INT8, however random weights take it. The engines' answers are checked.
        int8=Int8Options(bar=0.0) if int8 else None,
    )
    export_checkpoint(options, _Silence())
    return destination


class _Silence:
    """Progress that is not shown: what an export assumes about labels and pixels changes no speed."""

    @contextmanager
    def step(self, title: str) -> Iterator[Any]:
        from fuseline.export.progress import Step

        yield Step(title)

    def warn(self, text: str) -> None:
        pass


def random_checkpoint(architecture: str, folder: Path) -> Path:
    """Write a state dict of torchvision's `architecture` with random weights and used BatchNorms into `folder`."""
    import torch

    torch.manual_seed(_SEED)
    path = folder / f"{architecture}.pt"
    torch.save(_random_network(architecture).state_dict(), path)
    return path


def _random_network(architecture: str) -> Any:
    """An untrained network whose BatchNorms do real work, as a trained one's: no statistic is 0 or 1."""
    import torch
    from torch import nn

    if architecture == SMALL_ARCHITECTURE:
        from fuseline.export.recognition.networks.resnet import ResNet, ResNetSpec

        side = 32
        network: nn.Module = ResNet(
            ResNetSpec(
                block="basic",
                stem="3x3",
                stem_width=8,
                blocks_per_stage=(1, 1, 1),
                inner_widths=(8, 16, 32),
                out_widths=(8, 16, 32),
                projected_stages=(False, True, True),
                classes=10,
            )
        )
    else:
        import torchvision

        side = 224
        network = torchvision.models.get_model(architecture, weights=None)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.1)
        # None: the plain average of what is seen, so that one pass sets the statistics and activations stay sound.
        norm.momentum = None
    pixels = torch.from_numpy(generated_pictures((side, side, 3), 4, _SEED))
    with torch.no_grad():
        network.train()(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    return network.eval()
