"""What the tensors alone don't tell, from flags, the checkpoint or custom: labels, normalisation, input size, task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.facts.input_size import MIN_INPUT_SIDE, check_input_size, input_size_from_text
from fuseline.export.facts.labels import labels_from
from fuseline.export.facts.normalizations import KEY, normalization_from
from fuseline.export.network import TrainedNetwork
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import (
    MAX_INPUT_SIDE,
    Assumption,
    InputSpec,
    Normalization,
    Preprocessing,
    Task,
    described_classes,
)

SIZE = "size"
"""Key of `--assume` for the input size."""
TASK = "task"
"""Key of `--assume` for the task."""
_MEANINGS: dict[Task, str] = {
    "single-label": "a picture is of one class, and probabilities are a softmax over the classes",
    "multi-label": "a picture may have several labels, and each has a probability of its own, a sigmoid",
}
USUAL_SIDES_SMALL = (28, 32, 64, 224)
USUAL_SIDES = (32, 64, 128, 224, 256)
_BY_IMAGES = "--images: all of them have this size"
# torchvision's evaluation recipe resizes to 256 and crops 224; small images are used whole.
_RESIZE_RATIO = 256 / 224
_SMALL_INPUT_SIDE = 64
_IMAGENET_CLASSES = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What users of the model need and its tensors don't hold."""

    input: InputSpec
    normalization: Normalization
    labels: tuple[str, ...]
    task: Task
    assumptions: tuple[Assumption, ...]
    """Settings that change answers and were taken as is customary, or as a flag says."""
    warnings: tuple[str, ...]
    """Sentences: what else the user should know."""
    labels_known: bool = True
    """Whether a flag, the checkpoint or class folders named the classes."""

    @property
    def described_input(self) -> str:
        """The input for people: `32 x 32 RGB`."""
        kind = "RGB" if self.input.channels == 3 else "grey"
        return f"{self.input.height} x {self.input.width} {kind}"

    @property
    def described_classes(self) -> str:
        """The classes for people: `10 classes`, or as labels where a picture may have several."""
        return described_classes(len(self.labels), self.task)


def facts_from(
    checkpoint: Checkpoint,
    network: TrainedNetwork,
    *,
    labels: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: tuple[int, int] | None = None,
    assumed: Mapping[str, str] = {},
    shared_size: tuple[int, int] | None = None,
    task: Task | None = None,
) -> ModelFacts:
    """Return the facts: flags win over the checkpoint, the checkpoint over the images, the images over custom.

    Args:
        checkpoint: the checkpoint, with the metadata that stood beside its weights.
        network: the network, which tells what is customary for its kind.
        labels: a file's path or `imagenet`, as `labels_from` takes it.
        mean: mean of each channel, of pixels scaled to 0..1; goes with `std`.
        std: standard deviation of each channel, as `mean`.
        input_size: (height, width) in pixels.
        assumed: what `--assume` says; its keys `size`, `normalization` and `task` are used here.
        shared_size: (height, width) that all of the user's images have; taken where no size is customary.
        task: what `--task` says.

    Raises:
        InputError: labels, mean, std or the input size don't fit the network; nothing tells the size of its input; the
            network was trained for regression, or has a single logit.
    """
    chosen_task, task_assumptions = _task(checkpoint, network, task, assumed.get(TASK))
    if network.classes < 2:
        by = " and export it with --task single-label" if chosen_task == "multi-label" else ""
        raise InputError(
            "the classifier has 1 output, a single logit for a sigmoid; Fuseline serves classifiers of 2 or more "
            f"classes. With two rows it is one, by softmax: stack the weight to [0, w] and the bias to [0, b]{by}"
        )
    warnings: list[str] = list(checkpoint.metadata.get("warnings", ()))
    channels = _channels(network)
    (height, width), size_assumptions = _input_size(checkpoint, network, input_size, assumed.get(SIZE), shared_size)
    normalization, normalization_assumptions = normalization_from(
        checkpoint.metadata, channels, mean, std, assumed.get(KEY), warnings
    )
    names, labels_known = _labels(checkpoint, network, labels, warnings)
    others = (assumption for assumption in network.assumptions if assumption.key != SIZE)
    return ModelFacts(
        input=InputSpec(
            height=height,
            width=width,
            channels=channels,
            preprocessing=_preprocessing(checkpoint, (height, width), warnings),
        ),
        normalization=normalization,
        labels=names,
        task=chosen_task,
        assumptions=(*size_assumptions, *normalization_assumptions, *task_assumptions, *others),
        warnings=tuple(warnings),
        labels_known=labels_known,
    )


def _task(
    checkpoint: Checkpoint, network: TrainedNetwork, flag: Task | None, assumed: str | None
) -> tuple[Task, tuple[Assumption, ...]]:
    if assumed not in (None, *_MEANINGS):
        raise InputError(f"--assume {TASK}={assumed}: single-label or multi-label was expected")
    if flag is not None and assumed is not None and flag != assumed:
        raise InputError(f"--task {flag} and --assume {TASK}={assumed} contradict each other")
    by_user: Any = flag or assumed
    stored: Any = checkpoint.metadata.get(TASK)
    if by_user is None and stored == "regression":
        several = "; if they are logits of classes all the same, say so: --task single-label or --task multi-label"
        raise InputError(
            "the checkpoint says that it was trained for regression: its outputs are quantities, and Fuseline serves "
            f"classifiers of 2 or more classes{several if network.classes > 1 else ''}"
        )
    # A config.json of transformers that doesn't name the task means one label, as transformers' own pipeline takes it.
    if by_user is None and (stored is not None or "model_type" in checkpoint.config):
        return stored or "single-label", ()
    task: Task = by_user or "single-label"
    return task, (
        Assumption(
            key=TASK,
            value=task,
            meaning=_MEANINGS[task],
            alternatives=tuple(other for other in _MEANINGS if other != task),
            flag="--task single-label or --task multi-label",
            settled_by=None if by_user is None else f"--task {task}" if flag else f"--assume {TASK}={task}",
        ),
    )


def with_input_size(facts: ModelFacts, checkpoint: Checkpoint, size: tuple[int, int]) -> ModelFacts:
    """Return `facts` with an input of `size`, (height, width) in pixels, resized as is customary for that size."""
    preprocessing = _preprocessing(checkpoint, size, [])
    spec = facts.input.model_copy(update={"height": size[0], "width": size[1], "preprocessing": preprocessing})
    return replace(facts, input=spec)


def size_assumption(size: tuple[int, int], network: TrainedNetwork, settled_by: str | None) -> Assumption:
    """Return the assumption that the input has `size`, (height, width) in pixels."""
    text = size_as_text(size)
    sides = USUAL_SIDES_SMALL if size[0] <= _SMALL_INPUT_SIDE else USUAL_SIDES
    return Assumption(
        key=SIZE,
        value=text,
        meaning=f"{network.architecture} was trained on pictures of {size[0]} x {size[1]} pixels",
        alternatives=tuple(str(side) for side in sides if str(side) != text),
        flag="--input-size N",
        settled_by=settled_by,
    )


def size_as_text(size: tuple[int, int]) -> str:
    """Return `224` or `224x160`, as --input-size takes it."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _channels(network: TrainedNetwork) -> Any:
    if network.in_channels not in (1, 3):
        raise InputError(f"the first convolution takes {network.in_channels} channels; images have 1 or 3")
    return network.in_channels


def _preprocessing(checkpoint: Checkpoint, size: tuple[int, int], warnings: list[str]) -> Preprocessing:
    # The longer side of the crop counts, so that the crop always lies within the resized image.
    side = max(size)
    customary = side if side <= _SMALL_INPUT_SIDE else round(side * _RESIZE_RATIO)
    stored = checkpoint.metadata.get("resize_shorter_side")
    stored_side = checkpoint.metadata.get("input_size")
    resize = customary
    # The stored resize goes with the stored size, also where a flag says the same size.
    if isinstance(stored, int) and (stored_side is None or size == (stored_side, stored_side)):
        if stored >= side:
            resize = stored
        else:
            warnings.append(
                f"the checkpoint's resize to {stored} is below the input size {size[0]} x {size[1]} and is left out; "
                f"{customary} is assumed"
            )
    interpolation = checkpoint.metadata.get("interpolation", "bilinear")
    crop_offset = checkpoint.metadata.get("crop_offset", "rounded")
    return Preprocessing(resize_shorter_side=resize, interpolation=interpolation, crop_offset=crop_offset)


def _input_size(
    checkpoint: Checkpoint,
    network: TrainedNetwork,
    flag: tuple[int, int] | None,
    assumed: str | None,
    shared: tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[Assumption, ...]]:
    if flag is not None and assumed is not None and input_size_from_text(assumed) != flag:
        raise InputError(f"--input-size {size_as_text(flag)} and --assume {SIZE}={assumed} contradict each other")
    stored = checkpoint.metadata.get("input_size")
    size, settled_by = network.implied_input_size, None
    own = tuple(assumption for assumption in network.assumptions if assumption.key == SIZE)
    if flag is not None or assumed is not None:
        size = flag or input_size_from_text(assumed or "")
        settled_by = f"--input-size {size_as_text(size)}" if flag else f"--assume {SIZE}={assumed}"
    elif isinstance(stored, int):
        size = (stored, stored)
    elif (size is None or own) and shared is not None and _is_told_by_images(shared, network):
        size, settled_by = shared, _BY_IMAGES
    elif size is None and network.default_input_size is not None:
        size = (network.default_input_size, network.default_input_size)
        return size, own or (size_assumption(size, network, None),)
    if size is None:
        raise InputError(_no_size(network))
    check_input_size(*size)
    if network.takes_sizes and not _is_between(size, network):
        raise InputError(
            f"the input size is {size_as_text(size)} by {settled_by or 'the checkpoint'}, but the last pool of the "
            f"checkpoint's own layers covers the whole map of pictures of {_between(network)} alone: leave the size "
            f"out, or say --input-size {size_as_text(network.implied_input_size or network.takes_sizes[1])}. For other "
            "sizes build the network with your own code: --factory package.module:function"
        )
    if settled_by is not None:
        return size, (size_assumption(size, network, settled_by),)
    return size, () if isinstance(stored, int) else own


def _is_told_by_images(shared: tuple[int, int], network: TrainedNetwork) -> bool:
    """Return whether `shared`, the size of all images, is one that the network could have been trained on."""
    if network.takes_sizes:
        return _is_between(shared, network)
    return network.implied_input_size is None and network.default_input_size is None and _is_input_size(shared)


def _is_between(size: tuple[int, int], network: TrainedNetwork) -> bool:
    assert network.takes_sizes is not None
    smallest, largest = network.takes_sizes
    return all(least <= side <= most for least, side, most in zip(smallest, size, largest, strict=True))


def _between(network: TrainedNetwork) -> str:
    assert network.takes_sizes is not None
    smallest, largest = network.takes_sizes
    return size_as_text(largest) if smallest == largest else f"{size_as_text(smallest)} to {size_as_text(largest)}"


def _no_size(network: TrainedNetwork) -> str:
    if network.takes_sizes:
        usual = [side for side in USUAL_SIDES_SMALL if _is_between((side, side), network)]
        flags = " or ".join(f"--input-size {side}" for side in usual)
        return (
            f"the last pool of the checkpoint's own layers covers the whole map of pictures of {_between(network)} "
            f"pixels, and nothing says which of them {network.architecture} was trained on: {flags} says it, or "
            "--images DIR with pictures that all have that size"
        )
    grey = "a network for grey pictures" if network.in_channels == 1 else "it"
    return (
        f"nothing says the size of the pictures that {network.architecture} was trained on, and none is customary "
        f"for {grey}: --input-size 28 (or 32, 64, 224) says it, or --images DIR with pictures that all have it"
    )


def _is_input_size(size: tuple[int, int]) -> bool:
    return all(MIN_INPUT_SIDE <= side <= MAX_INPUT_SIDE for side in size)


def _labels(
    checkpoint: Checkpoint, network: TrainedNetwork, flag: str | None, warnings: list[str]
) -> tuple[tuple[str, ...], bool]:
    if flag is not None:
        return labels_from(flag, network.classes), True
    stored = checkpoint.metadata.get("labels")
    if isinstance(stored, list) and len(stored) == network.classes:
        odd = [index for index, label in enumerate(stored) if len(str(label).strip().splitlines()) != 1]
        if not odd:
            return tuple(str(label).strip() for label in stored), True
        warnings.append(f"the checkpoint's labels are left out: that of class {odd[0]} is empty or has several lines")
    elif isinstance(stored, list):
        warnings.append(f"the checkpoint's {len(stored)} labels don't fit {network.classes} classes and are left out")
    return tuple(str(index) for index in range(network.classes)), False


def no_labels(classes: int) -> str:
    """Return a sentence: nothing named the classes, and which flag would."""
    imagenet = " or --labels imagenet" if classes == _IMAGENET_CLASSES else ""
    return f"no labels came: classes are called by their index; --labels labels.txt{imagenet} names them"
