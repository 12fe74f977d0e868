"""What the tensors alone don't say: labels, normalisation and input size, from the flags, the checkpoint or custom."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from export.architectures import ResNetSpec
from export.checkpoint import Checkpoint
from export.input_size import check_input_size
from serve.errors import InputError
from serve.model_package import InputSpec, Normalization, Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's evaluation recipe resizes to 256 and crops 224; small images are used whole.
_RESIZE_RATIO = 256 / 224
_SMALL_INPUT_SIDE = 64
_MAX_LABEL_BYTES = 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything about the model that its users need and its tensors don't hold."""

    input: InputSpec
    normalization: Normalization
    labels: tuple[str, ...]
    assumptions: tuple[str, ...]
    """What was assumed because nothing said it, and a flag would: sentences for the user."""
    unseen: tuple[str, ...]
    """What no tensor tells and was taken as is customary: sentences for the report."""

    @property
    def described_input(self) -> str:
        """For people: `32 x 32 RGB`."""
        kind = "RGB" if self.input.channels == 3 else "grey"
        return f"{self.input.height} x {self.input.width} {kind}"


def facts_from(
    checkpoint: Checkpoint,
    spec: ResNetSpec,
    *,
    labels: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: tuple[int, int] | None = None,
) -> ModelFacts:
    """Flags win over what the checkpoint holds, which wins over what is customary, which is said.

    Raises:
        InputError: labels, mean, std or the input size don't fit the network.
    """
    if spec.classes < 2:
        raise InputError(
            "the classifier has 1 output, a single logit for a sigmoid; Fuseline serves classifiers of 2 or more "
            "classes by softmax. With two rows it is one: stack the weight to [0, w] and the bias to [0, b]"
        )
    assumptions: list[str] = []
    height, width = _input_size(checkpoint, spec, input_size)
    # Of the longer side of the crop, so that it always lies within the resized image.
    side = max(height, width)
    resize = side if side <= _SMALL_INPUT_SIDE else round(side * _RESIZE_RATIO)
    return ModelFacts(
        input=InputSpec(
            height=height,
            width=width,
            channels=_channels(spec),
            preprocessing=Preprocessing(resize_shorter_side=resize),
        ),
        normalization=_normalization(checkpoint, spec, mean, std, assumptions),
        labels=_labels(checkpoint, spec, labels, assumptions),
        assumptions=tuple(assumptions),
        unseen=tuple(_unseen(spec)),
    )


def _unseen(spec: ResNetSpec) -> Iterator[str]:
    """What no tensor's shape tells, where networks in use differ."""
    if spec.stem == "3x3":
        yield (
            "tensors don't tell strides: the 3x3 first convolution is taken to have stride 1 and no max-pool after it, "
            "as in CIFAR ResNets"
        )
    if spec.shortcut == "option-a":
        yield "the parameter-free shortcuts are taken to add half of their zero channels before and half after"


def _channels(spec: ResNetSpec) -> Any:
    if spec.in_channels not in (1, 3):
        raise InputError(f"the first convolution takes {spec.in_channels} channels; images have 1 or 3")
    return spec.in_channels


def _input_size(checkpoint: Checkpoint, spec: ResNetSpec, flag: tuple[int, int] | None) -> tuple[int, int]:
    default = (spec.default_input_size, spec.default_input_size)
    stored = checkpoint.metadata.get("input_size")
    height, width = flag or ((stored, stored) if isinstance(stored, int) else default)
    check_input_size(height, width)
    return height, width


def _normalization(
    checkpoint: Checkpoint,
    spec: ResNetSpec,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    assumptions: list[str],
) -> Normalization:
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: only one of them came")
    stored_mean, stored_std = checkpoint.metadata.get("mean"), checkpoint.metadata.get("std")
    if mean is None and isinstance(stored_mean, list) and isinstance(stored_std, list):
        mean, std = stored_mean, stored_std
    if mean is None or std is None:
        grey = spec.in_channels == 1
        mean = (sum(IMAGENET_MEAN) / 3,) if grey else IMAGENET_MEAN
        std = (sum(IMAGENET_STD) / 3,) if grey else IMAGENET_STD
        assumptions.append(
            f"nothing says how the training normalised its pixels; ImageNet's mean {_comma(mean)} and std "
            f"{_comma(std)} are assumed. If it used others, give --mean and --std: wrong ones cost accuracy in silence"
        )
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) != spec.in_channels:
            raise InputError(f"{flag} has {len(values)} values, the network takes {spec.in_channels} channels")
    if any(not 0 < value <= 10 for value in std) or any(not -10 <= value <= 10 for value in mean):
        raise InputError(
            f"--mean {_comma(mean)} --std {_comma(std)}: both are of pixels scaled to 0..1, std above 0; "
            "divide values of pixels 0..255 by 255"
        )
    return Normalization(mean=tuple(mean), std=tuple(std))


def _labels(checkpoint: Checkpoint, spec: ResNetSpec, flag: Path | None, assumptions: list[str]) -> tuple[str, ...]:
    if flag is not None:
        return _labels_from_file(flag, spec.classes)
    stored = checkpoint.metadata.get("labels")
    if isinstance(stored, list) and len(stored) == spec.classes:
        return tuple(str(label) for label in stored)
    if isinstance(stored, list):
        assumptions.append(f"the checkpoint's {len(stored)} labels don't fit {spec.classes} classes and are left out")
    assumptions.append("no labels came: classes are called by their index; --labels labels.txt names them, one a line")
    return tuple(str(index) for index in range(spec.classes))


def _labels_from_file(path: Path, classes: int) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_LABEL_BYTES:
            raise InputError(f"--labels {path}: has {path.stat().st_size} bytes; one label a line was expected")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--labels {path}: is no UTF-8 text ({error.reason}); one label a line was expected"
        ) from error
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if len(labels) != classes:
        raise InputError(f"--labels {path}: has {len(labels)} lines, the network tells {classes} classes apart")
    if empty := [number for number, label in enumerate(labels, 1) if not label]:
        raise InputError(f"--labels {path}: line {empty[0]} is empty")
    return labels


def _comma(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
