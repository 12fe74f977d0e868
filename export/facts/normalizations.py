"""The customary normalisations of pixels: mean and std of pixels scaled to 0..1, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import Assumption, Normalization

KEY = "normalization"
"""Key of `--assume` for the normalisation."""

# torchvision's reference training; the training set's own statistics for CIFAR, MNIST and FashionMNIST; CLIP's paper.
_RGB: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "0..1": ((0.0,) * 3, (1.0,) * 3),
    "0..255": ((0.0,) * 3, (1 / 255,) * 3),
}
_GREY: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((sum(_RGB["imagenet"][0]) / 3,), (sum(_RGB["imagenet"][1]) / 3,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
    "0..1": ((0.0,), (1.0,)),
    "0..255": ((0.0,), (1 / 255,)),
}
_MEANINGS = {
    "imagenet": "ImageNet's",
    "cifar10": "CIFAR-10's",
    "cifar100": "CIFAR-100's",
    "clip": "CLIP's",
    "mnist": "MNIST's",
    "fashion-mnist": "FashionMNIST's",
    "half": "0.5 for both, pixels of -1..1",
    "0..1": "none, pixels of 0..1",
    "0..255": "none, pixels of 0..255",
}
_ASSUMED = "imagenet"
# Normalisations too near to another one to be told apart from it.
_ALIKE = frozenset({"cifar100", "clip"})


def customary(channels: int) -> dict[str, Normalization]:
    """Return the normalisations that differ enough to be told apart, by name, the commonest first."""
    table = _RGB if channels == 3 else _GREY
    return {name: Normalization(mean=m, std=s) for name, (m, s) in table.items() if name not in _ALIKE}


def normalization_named(name: str, channels: int) -> Normalization:
    """Return the normalisation that `--assume normalization=NAME` means. Raise `InputError` if there is none."""
    table = _RGB if channels == 3 else _GREY
    if name not in table:
        raise InputError(
            f"--assume {KEY}={name}: one of {', '.join(table)} was expected; --mean and --std say any other"
        )
    mean, std = table[name]
    return Normalization(mean=mean, std=std)


def normalization_from(
    metadata: Mapping[str, Any],
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    assumed: str | None,
    warnings: list[str],
) -> tuple[Normalization, tuple[Assumption, ...]]:
    """Return the normalisation that flags, else the checkpoint's `metadata`, else custom give, and what was assumed.

    Args:
        metadata: the checkpoint's; `mean` and `std` are per channel, of pixels scaled to 0..1.
        channels: number of channels that the network takes.
        mean: what `--mean` says, as in `metadata`; goes with `std`.
        std: what `--std` says.
        assumed: the name that `--assume` gives.
        warnings: list to which sentences for the user are added.

    Raises:
        InputError: flags that contradict each other, or values that don't fit the network.
    """
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: only one of them came")
    if mean is not None and assumed is not None:
        raise InputError(f"--mean and --std say the normalisation, and so does --assume {KEY}={assumed}: give one")
    by_flag = mean is not None
    stored_mean, stored_std = metadata.get("mean"), metadata.get("std")
    if mean is None and assumed is None and isinstance(stored_mean, list) and isinstance(stored_std, list):
        mean, std = stored_mean, stored_std
    if mean is None or std is None:
        name = assumed or _ASSUMED
        taken = normalization_named(name, channels)
        if assumed is None and (stored_mean or stored_std):
            alone = "mean" if stored_mean else "std"
            warnings.append(f"the checkpoint has a {alone} without its counterpart, which is left out")
        return taken, (_named(name, taken, f"--assume {KEY}={name}" if assumed else None),)
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise InputError(f"{flag} has {len(values)} values, the network takes {channels} channels")
    if any(not 0 < value <= 10 for value in std) or any(not -10 <= value <= 10 for value in mean):
        raise InputError(
            f"--mean {_comma(mean)} --std {_comma(std)}: both are of pixels scaled to 0..1, std above 0; "
            "divide values of pixels 0..255 by 255"
        )
    normalization = Normalization(mean=tuple(mean), std=tuple(std))
    if not by_flag:
        return normalization, ()
    return normalization, (_flagged(normalization),)


def _named(name: str, normalization: Normalization, settled_by: str | None) -> Assumption:
    """Return the assumption that the training normalised its pixels as `name` of the customary ones does."""
    return Assumption(
        key=KEY,
        value=name,
        meaning=_meaning_of(name, normalization),
        alternatives=tuple(other for other in customary(len(normalization.mean)) if other != name),
        flag=f"--mean and --std, or --assume {KEY}=NAME",
        settled_by=settled_by,
    )


def _flagged(normalization: Normalization) -> Assumption:
    """Return the assumption that the training normalised its pixels as flags say."""
    flags = f"--mean {_comma(normalization.mean)} --std {_comma(normalization.std)}"
    return Assumption(
        key=KEY,
        value=flags,
        meaning="the training's normalisation was that of the flags",
        flag="--mean and --std",
        settled_by=flags,
    )


def _meaning_of(name: str, normalization: Normalization) -> str:
    """Return what the normalisation called `name` is, for people."""
    mean, std = (",".join(f"{value:.4g}" for value in values) for values in (normalization.mean, normalization.std))
    return f"the training's normalisation was {_MEANINGS[name]} (mean {mean}, std {std})"


def _comma(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
