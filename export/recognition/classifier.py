"""Which of the matrices beside a backbone is its classifier, whatever it is called."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fuseline.export.recognition.naming.foreign_networks import FACTORY, SELF_SUPERVISED
from fuseline.export.recognition.naming.placement import Placement
from fuseline.serve.errors import ArchitectureError

if TYPE_CHECKING:
    from fuseline.export.recognition.candidate import Candidate

Head = tuple[Tensor, Tensor]
"""Weight (classes, features) and bias (classes,)."""

_SHOWN = 6


def heads_beside(placement: Placement, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that `placement` has no place for, of groups with matrices and without kernels: heads of any kind."""
    placed = set(placement.placed(weights).values())
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        groups.setdefault(name.partition(".")[0], {})[name] = tensor
    return {
        name: tensor
        for group in groups.values()
        if any(map(_is_matrix, group, group.values())) and not any(tensor.ndim > 2 for tensor in group.values())
        for name, tensor in group.items()
        if name not in placed
    }


def with_lone_classifier(placement: Placement, weights: Mapping[str, Tensor]) -> Placement:
    """`placement` with the only matrix beside the backbone as its classifier, if that takes the backbone's features.

    The heads of self-supervised training do, and are none.
    """
    if any(map(SELF_SUPERVISED.search, weights)):
        return placement
    lone = [name for name, tensor in heads_beside(placement, weights).items() if _is_matrix(name, tensor)]
    if len(lone) != 1 or weights[lone[0]].shape[1] != features_of(placement, weights):
        return placement
    return placed_with(placement, lone[0].removesuffix(".weight"))


def placed_with(placement: Placement, classifier: str) -> Placement:
    """`placement` with the module `classifier` as the classifier."""
    return replace(placement, modules={**placement.modules, "fc": classifier})


def features_of(placement: Placement, weights: Mapping[str, Tensor]) -> int | None:
    """Channels that the last convolution gives out; None where it isn't there."""
    found = {ours: weights[theirs] for ours, theirs in placement.placed(weights).items()}
    if placement.scheme.family == "plain":
        numbered = [ours for ours, tensor in found.items() if ours.startswith("features.") and tensor.ndim == 4]
        last = max(numbered, key=lambda name: int(name.split(".")[1]), default=None)
    else:
        stage, block = max(placement.blocks, default=(0, 0))
        names = (f"layer{stage + 1}.{block}.conv{number}.weight" for number in (3, 2))
        last = next((name for name in names if name in found and found[name].ndim == 4), None)
    return None if last is None else found[last].shape[0]


def named_classifier(weights: Mapping[str, Tensor], name: str) -> str:
    """The module that `--head name` means: its name, or the end of it.

    Raises:
        ArchitectureError: no matrix is called so, or several; the message lists what there is.
    """
    matrices = {found.removesuffix(".weight"): tensor for found, tensor in weights.items() if _is_matrix(found, tensor)}
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
    """The bias of a classifier that has none."""
    return torch.zeros(weight.shape[:1], device=weight.device)


def head_refusal(candidate: "Candidate") -> str | None:
    """A message if the matrices beside a backbone are all that keeps it from being a whole network, else None."""
    heads = heads_beside(candidate.placement, candidate.tensors)
    matrices = {name: tensor for name, tensor in heads.items() if _is_matrix(name, tensor)}
    features = features_of(candidate.placement, candidate.tensors)
    if candidate.has_classifier:
        name = f"{candidate.placement.modules['fc']}.weight"
        weight = candidate.tensors[name]
        # A multiple of the features is of a map that isn't pooled to one pixel, which is said elsewhere.
        odd = weight.ndim == 2 and features and weight.shape[1] % features
        if odd or matrices:
            matrices = {name: weight, **matrices}
    if not matrices or len(candidate.placed) + len(heads) != len(candidate.tensors):
        return None
    naming = candidate.placement.scheme.name
    if len(matrices) > 1:
        return (
            f"this is a backbone ({naming} naming) that gives {features} features, and beside it stand "
            f"{len(matrices)} linear layers: {described(matrices)}. If one of them alone is the classifier, --head "
            f"NAME takes it and leaves the others out; if one follows the other, {FACTORY}; a classifier from "
            "elsewhere takes the place of all: --head-from FILE"
        )
    ((name, tensor),) = matrices.items()
    return (
        f"this is a backbone ({naming} naming) that gives {features} features, but the only linear layer beside it, "
        f"{name} {tuple(tensor.shape)}, takes {tensor.shape[1]}. If other layers stand between them, {FACTORY}; a "
        "classifier from elsewhere takes its place: --head-from FILE"
    )


def described(matrices: Mapping[str, Tensor]) -> str:
    """Names and shapes, the first few."""
    shown = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(matrices.items())[:_SHOWN])
    return shown + (f" and {len(matrices) - _SHOWN} more" if len(matrices) > _SHOWN else "")


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight")
