"""The parts beside a network in a checkpoint, by names and shapes: heads, copies, and what training needed."""

import math
import re
from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor to its shape."""

_EMA = re.compile(
    r"_?((model|module|net|network|params|state_dict|weights)_?)?(ema|swa)"
    r"(_?(model|module|net|network|params|state|state_dict|weights))?"
    r"|_?(avg|averaged?)_(model|module|net|network|params|state_dict|weights)"
)
_BYSTANDER = re.compile(
    r"(\w+_)?(criterion|loss|loss_fn|loss_func|losses|n_averaged|metrics?|accuracy|acc|auroc|confmat)\d*"
    r"|(train|val|valid|test)_\w+|decay|initted|step|num_updates|queue\w*",
    re.IGNORECASE,
)
# Names of networks that follow or lead the one that is trained; of two such networks, the other is meant.
_COPY = re.compile(
    r"(\w+_)?teacher(_\w+)?\d*|momentum_\w+|(target|key)_(encoder|backbone|net|network|model|\w*head|projector)"
    r"|(encoder|backbone|net|network|model|\w*head|projector)_(momentum|target|key|k)",
    re.IGNORECASE,
)
_PROJECTION = re.compile(
    r"(\w+_)?(projector|projection|projection_head|predictor|prediction_head|prototypes)\d*", re.IGNORECASE
)
_PRETRAINED = re.compile(
    r"encoder_[qk]|(query|key|momentum|online|target)_(encoder|backbone|network)|queue", re.IGNORECASE
)
_PIXEL_STATISTICS = re.compile(r"(.+\.)?((image|pixel|input|data)_)?(mean|std)")
_HEAD = re.compile(r"(fc|linear|head|heads|classifier|last_linear|logits|output|out|cls|cls_head)\d*")
_GATE = re.compile(r"(se|se_?module|squeeze\w*|attn|attention|ca|gate)\d*")
# Smallest number of convolutions in a network; fewer may be a stem or a neck.
_CONVOLUTIONS_OF_A_NETWORK = 4
_MAX_NESTING = 16


def is_ema(name: str) -> bool:
    """Return whether a key, or the first part of a name, says that it holds averaged weights."""
    return bool(_EMA.fullmatch(name))


def is_bystander(first: str) -> bool:
    """Return whether the first part of a name says that what is behind it served only the training."""
    return bool(_BYSTANDER.fullmatch(first) or is_copy(first))


def is_copy(first: str) -> bool:
    """Return whether the first part of a name says that a second network is behind it, such as a teacher."""
    return bool(_COPY.fullmatch(first))


def is_projection(first: str) -> bool:
    """Return whether the first part of a name says that a head of self-supervised training is behind it."""
    return bool(_PROJECTION.fullmatch(first))


def is_pretraining(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether these are tensors of a self-supervised training, whose heads are no classifiers.

    Hand-written ResNets may call a shortcut `projection`, but that has kernels, and a projection head has none.
    """
    projections: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        if any(map(_PRETRAINED.fullmatch, parts)):
            return True
        for index, part in enumerate(parts):
            if is_projection(part):
                projections.setdefault(".".join(parts[: index + 1]), set()).add(len(shape))
    return any(2 in dimensions and 4 not in dimensions for dimensions in projections.values())


def is_pixel_statistic(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is the mean or the deviation with which a layer normalises pixels."""
    return bool(_PIXEL_STATISTICS.fullmatch(name)) and math.prod(shape) in (1, 3)


def is_layer(first: str, group: Shapes) -> bool:
    """Return whether a group of tensors may be a part of a network: it has a matrix, a kernel or running statistics."""
    if is_bystander(first):
        return False
    return any(
        (len(shape) >= 2 and name.endswith("weight")) or name.endswith("running_var") for name, shape in group.items()
    )


def is_head(first: str, group: Shapes) -> bool:
    """Return whether a group is a classifier: matrices, or a single 1x1 convolution with a classifier's name."""
    kernels = [shape for shape in group.values() if len(shape) == 4]
    if any(shape[2:] != (1, 1) for shape in kernels):
        return False
    has_matrix = any(len(shape) == 2 and name.endswith("weight") for name, shape in group.items())
    return has_matrix or (len(kernels) == 1 and bool(_HEAD.fullmatch(first)))


def has_head(shapes: Shapes) -> bool:
    """Return whether there is a matrix that is no gate of squeeze-and-excitation."""
    for name, shape in shapes.items():
        parts = name.split(".")
        is_matrix = len(shape) == 2 and parts[-1] == "weight"
        if is_matrix and not is_bystander(parts[0]) and not any(_GATE.fullmatch(part) for part in parts):
            return True
    return False


def has_convolution(shapes: Shapes) -> bool:
    """Return whether there is a kernel of two dimensions."""
    return any(len(shape) == 4 for shape in shapes.values())


def holds_network(shapes: Shapes) -> bool:
    """Return whether the tensors are a whole network: several parts with names, behind prefixes that all share.

    A stage is no network, as blocks and parts of Sequentials have numbers for names; nor is a stem or a neck, which has
    no classifier and few convolutions.
    """
    for _ in range(_MAX_NESTING):
        groups = groups_of(shapes)
        if len(groups) > 1:
            break
        shapes = {name.partition(".")[2]: shape for name, shape in shapes.items() if "." in name}
    named = [first for first in groups if not first.isdigit()]
    kernels = sum(len(shape) == 4 for shape in shapes.values())
    return len(named) > 1 and kernels > 0 and (has_head(shapes) or kernels >= _CONVOLUTIONS_OF_A_NETWORK)


def groups_of(shapes: Shapes) -> dict[str, Shapes]:
    """Return first part of a name -> the tensors whose names have it, by their whole names."""
    groups: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        groups.setdefault(first_of(name), {})[name] = shape
    return groups


def first_of(name: str) -> str:
    """Return the part of a name before its first dot; the whole name if there is none."""
    return name.partition(".")[0]
