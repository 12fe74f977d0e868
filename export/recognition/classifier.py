"""The classifier among the matrices beside a backbone, whatever its name."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fuseline.export.recognition.naming.foreign_networks import SELF_SUPERVISED
from fuseline.export.recognition.naming.placement import Placement
from fuseline.serve.errors import ArchitectureError

Head = tuple[Tensor, Tensor]
"""Weight (classes, features) and bias (classes,)."""

_SHOWN = 6


def heads_beside(placement: Placement, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of heads of any kind: those without a place, in groups that have matrices and no kernels."""
    placed = set(placement.placed(weights).values())
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        groups.setdefault(name.partition(".")[0], {})[name] = tensor
    return {
        name: tensor
        for group in groups.values()
        if any(map(is_matrix, group, group.values())) and not any(tensor.ndim > 2 for tensor in group.values())
        for name, tensor in group.items()
        if name not in placed
    }


def with_lone_classifier(placement: Placement, weights: Mapping[str, Tensor]) -> Placement:
    """Return `placement` with the only matrix beside the backbone as its classifier, if it takes the features.

    A head of self-supervised training takes them too, but is no classifier.
    """
    if any(map(SELF_SUPERVISED.search, weights)):
        return placement
    lone = [name for name, tensor in heads_beside(placement, weights).items() if is_matrix(name, tensor)]
    if len(lone) != 1 or weights[lone[0]].shape[1] != features_of(placement, weights):
        return placement
    return placed_with(placement, lone[0].removesuffix(".weight"))


def placed_with(placement: Placement, classifier: str) -> Placement:
    """Return `placement` with the module `classifier` as the classifier."""
    return replace(placement, modules={**placement.modules, "fc": classifier})


def features_of(placement: Placement, weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of output channels of the last convolution; None where it isn't there."""
    found = {name: weights[stored] for name, stored in placement.placed(weights).items()}
    if placement.scheme.family == "plain":
        numbered = [name for name, tensor in found.items() if name.startswith("features.") and tensor.ndim == 4]
        last = max(numbered, key=lambda name: int(name.split(".")[1]), default=None)
    else:
        stage, block = max(placement.blocks, default=(0, 0))
        names = (f"layer{stage + 1}.{block}.conv{number}.weight" for number in (3, 2))
        last = next((name for name in names if name in found and found[name].ndim == 4), None)
    return None if last is None else found[last].shape[0]


def named_classifier(weights: Mapping[str, Tensor], name: str) -> str:
    """Return the module that `--head name` means by its name or the end of it.

    Raises:
        ArchitectureError: no matrix, or more than one, is called so; the message lists what there is.
    """
    matrices = {found.removesuffix(".weight"): tensor for found, tensor in weights.items() if is_matrix(found, tensor)}
    wanted = name.removesuffix(".weight")
    if wanted in matrices:
        return wanted
    fitting = [module for module in matrices if module.endswith(f".{wanted}") or wanted.endswith(f".{module}")]
    if len(fitting) == 1:
        return fitting[0]
    raise ArchitectureError(
        f"--head {name!r} is no linear layer of the file's, or not one alone; there "
        f"{f'are {described(matrices)}' if matrices else 'is none'}"
    )


def zeros_for(weight: Tensor) -> Tensor:
    """Return the bias of a classifier that has none."""
    return torch.zeros(weight.shape[:1], device=weight.device)


def described(matrices: Mapping[str, Tensor]) -> str:
    """Return the names and shapes of the first few matrices, for people."""
    shown = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(matrices.items())[:_SHOWN])
    return shown + (f" and {len(matrices) - _SHOWN} more" if len(matrices) > _SHOWN else "")


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor of this name is the weight of a linear layer."""
    return tensor.ndim == 2 and name.endswith(".weight")
