"""What the tensors alone don't say: labels, normalisation and input size, from the flags, the checkpoint or custom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from export.checkpoint import Checkpoint
from export.input_size import check_input_size
from export.labels import labels_from
from export.network import TrainedNetwork
from serve.errors import InputError
from serve.model_package import InputSpec, Normalization, Preprocessing, Task, described_classes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's evaluation recipe resizes to 256 and crops 224; small images are used whole.
_RESIZE_RATIO = 256 / 224
_SMALL_INPUT_SIDE = 64
_IMAGENET_CLASSES = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything about the model that its users need and its tensors don't hold."""

    input: InputSpec
    normalization: Normalization
    labels: tuple[str, ...]
    task: Task
    assumptions: tuple[str, ...]
    """What was assumed because nothing said it, and a flag would: sentences for the user."""
    unseen: tuple[str, ...]
    """What no tensor tells and was taken as is customary: sentences for the report."""

    @property
    def described_input(self) -> str:
        """For people: `32 x 32 RGB`."""
        kind = "RGB" if self.input.channels == 3 else "grey"
        return f"{self.input.height} x {self.input.width} {kind}"

    @property
    def described_classes(self) -> str:
        """For people: `10 classes`, or what they are where several may hold."""
        return described_classes(len(self.labels), self.task)


def facts_from(
    checkpoint: Checkpoint,
    network: TrainedNetwork,
    *,
    labels: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: tuple[int, int] | None = None,
    task: Task | None = None,
) -> ModelFacts:
    """Flags win over what the checkpoint holds, which wins over what is customary, which is said.

    `labels` is a file's path or `imagenet`, as `labels_from` takes it.

    Raises:
        InputError: labels, mean, std or the input size don't fit the network, it was trained for regression, or it has
            a single logit.
    """
    meaning = _task(checkpoint, network, task)
    if network.classes < 2:
        by = " and export it with --task single-label" if meaning == "multi-label" else ""
        raise InputError(
            "the classifier has 1 output, a single logit for a sigmoid; Fuseline serves classifiers of 2 or more "
            f"classes. With two rows it is one, by softmax: stack the weight to [0, w] and the bias to [0, b]{by}"
        )
    assumptions: list[str] = list(checkpoint.metadata.get("warnings", ()))
    height, width = _input_size(checkpoint, network, input_size)
    return ModelFacts(
        input=InputSpec(
            height=height,
            width=width,
            channels=_channels(network),
            preprocessing=_preprocessing(checkpoint, (height, width), assumptions),
        ),
        normalization=_normalization(checkpoint, network, mean, std, assumptions),
        labels=_labels(checkpoint, network, labels, assumptions),
        task=meaning,
        assumptions=tuple(assumptions),
        unseen=network.unseen,
    )


def _task(checkpoint: Checkpoint, network: TrainedNetwork, flag: Task | None) -> Task:
    if flag is not None:
        return flag
    stored: Any = checkpoint.metadata.get("task", "single-label")
    if stored == "regression":
        several = "; if they are logits of classes all the same, say so: --task single-label or --task multi-label"
        raise InputError(
            "the checkpoint says that it was trained for regression: its outputs are quantities, and Fuseline serves "
            f"classifiers of 2 or more classes{several if network.classes > 1 else ''}"
        )
    return stored  # type: ignore[no-any-return]


def _channels(network: TrainedNetwork) -> Any:
    if network.in_channels not in (1, 3):
        raise InputError(f"the first convolution takes {network.in_channels} channels; images have 1 or 3")
    return network.in_channels


def _preprocessing(checkpoint: Checkpoint, size: tuple[int, int], assumptions: list[str]) -> Preprocessing:
    # Of the longer side of the crop, so that it always lies within the resized image.
    side = max(size)
    customary = side if side <= _SMALL_INPUT_SIDE else round(side * _RESIZE_RATIO)
    stored = checkpoint.metadata.get("resize_shorter_side")
    stored_side = checkpoint.metadata.get("input_size")
    resize = customary
    # What was stored goes with the size that was stored, also where a flag says the same size.
    if isinstance(stored, int) and (stored_side is None or size == (stored_side, stored_side)):
        if stored >= side:
            resize = stored
        else:
            assumptions.append(
                f"the checkpoint's resize to {stored} is below the input size {size[0]} x {size[1]} and is left out; "
                f"{customary} is assumed"
            )
    interpolation = checkpoint.metadata.get("interpolation", "bilinear")
    crop_offset = checkpoint.metadata.get("crop_offset", "rounded")
    return Preprocessing(resize_shorter_side=resize, interpolation=interpolation, crop_offset=crop_offset)


def _input_size(checkpoint: Checkpoint, network: TrainedNetwork, flag: tuple[int, int] | None) -> tuple[int, int]:
    default = (network.default_input_size, network.default_input_size)
    stored = checkpoint.metadata.get("input_size")
    height, width = flag or ((stored, stored) if isinstance(stored, int) else default)
    check_input_size(height, width)
    return height, width


def _normalization(
    checkpoint: Checkpoint,
    network: TrainedNetwork,
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
        grey = network.in_channels == 1
        mean = (sum(IMAGENET_MEAN) / 3,) if grey else IMAGENET_MEAN
        std = (sum(IMAGENET_STD) / 3,) if grey else IMAGENET_STD
        alone = "mean" if stored_mean else "std"
        if stored_mean or stored_std:
            assumptions.append(f"the checkpoint has a {alone} without its counterpart, which is left out")
        assumptions.append(
            f"nothing says how the training normalised its pixels; ImageNet's mean {_comma(mean)} and std "
            f"{_comma(std)} are assumed. If it used others, give --mean and --std: wrong ones cost accuracy in silence"
        )
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) != network.in_channels:
            raise InputError(f"{flag} has {len(values)} values, the network takes {network.in_channels} channels")
    if any(not 0 < value <= 10 for value in std) or any(not -10 <= value <= 10 for value in mean):
        raise InputError(
            f"--mean {_comma(mean)} --std {_comma(std)}: both are of pixels scaled to 0..1, std above 0; "
            "divide values of pixels 0..255 by 255"
        )
    return Normalization(mean=tuple(mean), std=tuple(std))


def _labels(
    checkpoint: Checkpoint, network: TrainedNetwork, flag: str | None, assumptions: list[str]
) -> tuple[str, ...]:
    if flag is not None:
        return labels_from(flag, network.classes)
    stored = checkpoint.metadata.get("labels")
    if isinstance(stored, list) and len(stored) == network.classes:
        odd = [index for index, label in enumerate(stored) if len(str(label).strip().splitlines()) != 1]
        if not odd:
            return tuple(str(label).strip() for label in stored)
        assumptions.append(
            f"the checkpoint's labels are left out: that of class {odd[0]} is empty or has several lines"
        )
    elif isinstance(stored, list):
        assumptions.append(
            f"the checkpoint's {len(stored)} labels don't fit {network.classes} classes and are left out"
        )
    imagenet = " or --labels imagenet" if network.classes == _IMAGENET_CLASSES else ""
    assumptions.append(f"no labels came: classes are called by their index; --labels labels.txt{imagenet} names them")
    return tuple(str(index) for index in range(network.classes))


def _comma(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
