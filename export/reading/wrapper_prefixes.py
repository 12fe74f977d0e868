"""Which of a checkpoint's tensors are the network, and what they are called without their wrappers' prefixes.

Wrappers put a prefix before the names of the network that they hold: `module.` (DistributedDataParallel), `_orig_mod.`
(torch.compile), `model.` or `net.` (a LightningModule's attribute). Beside it may stand what training needed: a loss's
class weights, metrics, a teacher.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

PREFIXES = (
    "module.",
    "model.",
    "net.",
    "network.",
    "backbone.",
    "encoder.",
    "feature_extractor.",
    "student.",
    "online_model.",
    "resnet.",
)
"""In the order in which they are looked for where several fit."""

_HUGGING_FACE = "resnet.embedder."  # where it is there, `resnet.` is a part of the scheme's names

# These stand before any part of a network and never name one.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_EMA = re.compile(
    r"_?((model|module|net|network|params|state_dict|weights)_?)?(ema|swa)"
    r"(_?(model|module|net|network|params|state|state_dict|weights))?"
    r"|_?(avg|averaged?)_(model|module|net|network|params|state_dict|weights)"
)
_BYSTANDER = re.compile(
    r"(\w+_)?(criterion|loss|loss_fn|loss_func|losses|teacher(_\w+)?|n_averaged|metrics?|accuracy|acc|auroc|confmat"
    r"|(train|val|valid|test)_\w+|target_encoder|momentum_\w+|decay|initted|step|num_updates)\d*",
    re.IGNORECASE,
)
_PIXEL_STATISTICS = re.compile(r"(.+\.)?((image|pixel|input|data)_)?(mean|std)")
_HEAD = re.compile(r"(fc|linear|head|heads|classifier|last_linear|logits|output|out|cls|cls_head)\d*")
_GATE = re.compile(r"(se|se_?module|squeeze\w*|attn|attention|ca|gate)\d*")


@dataclass
class Names:
    """How names of the file become names of the network."""

    notes: list[str] = field(default_factory=list)
    _steps: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def renamed(self, name: str) -> str | None:
        """`name`, of a tensor or a layer, in the network; None if it is none of the network's."""
        dotted = f"{name}."  # so that a layer that is the wrapper itself loses its whole name
        for prefix, left_out in self._steps:
            if _first(dotted) in left_out:
                return None
            dotted = dotted.replace(prefix, "") if prefix in _INFIXES else dotted.removeprefix(prefix)
        return dotted.removesuffix(".") or None

    def stages(self, tensors: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """`tensors` by their names before each step, with what the steps so far took away, for people."""
        gone: list[str] = []
        for count, (prefix, left_out) in enumerate(self._steps):
            before = Names([], self._steps[:count])
            yield (
                ", ".join(gone),
                {new: value for name, value in tensors.items() if (new := before.renamed(name)) is not None},
            )
            gone += [f"`{printable(prefix)}`"] if prefix else [f"`{printable(first)}.*`" for first in sorted(left_out)]


def network_names(tensors: Mapping[str, Any]) -> Names:
    """The names of the network among `tensors`, of which only the shapes matter.

    A prefix goes where every name has it, or where it holds a whole network beside which only other things stand, or
    where it holds a network whose classifier stands beside it. Where it isn't clear what the network is, such as two
    networks or two classifiers, names stay as they are.
    """
    names = Names()
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
    inert = {name for name, tensor in tensors.items() if isinstance(tensor, Tensor) and not tensor.is_floating_point()}
    while step := _next_step(shapes, inert, names.notes):
        names._steps.append(step)
        renamed = Names([], [step])
        shapes = {new: shape for name, shape in shapes.items() if (new := renamed.renamed(name)) is not None}
        inert = {new for name in inert if (new := renamed.renamed(name)) is not None}
    return names


def pixel_statistics(tensors: Mapping[Any, Any]) -> dict[str, list[float]]:
    """`mean` and `std` of a layer that normalises images, flat: buffers of 1 or 3 values, such as `normalize.mean`."""
    found: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and _is_pixel_statistic(name, tuple(tensor.shape)):
            found.setdefault(name[-4:].lstrip("._"), tensor.flatten().tolist())
    return found if found.keys() == {"mean", "std"} else {}


def is_ema(name: str) -> bool:
    """Whether a key or the first part of a name says that it holds averaged weights."""
    return bool(_EMA.fullmatch(name))


def averaged_group(name: str) -> str | None:
    """What stands before averaged weights' own names, wrappers included: `module.ema_model.`; None of plain ones."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if is_ema(part):
            return ".".join(parts[: index + 1]) + "."
        if f"{part}." not in (*PREFIXES, *_INFIXES):
            return None
    return None


def printable(text: str) -> str:
    """`text` with what UTF-8 can't hold, lone surrogates, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


Shapes = dict[str, tuple[int, ...]]


def _next_step(shapes: Shapes, inert: set[str], notes: list[str]) -> tuple[str, frozenset[str]] | None:
    for infix in _INFIXES:
        if any(infix in name for name in shapes):
            everywhere = all(name.startswith(infix) for name in shapes)
            notes.append(f"prefix `{infix}` stripped from {'every name' if everywhere else 'names'}")
            return infix, frozenset()
    prefixes = [p for p in PREFIXES if p != "resnet." or not any(name.startswith(_HUGGING_FACE) for name in shapes)]
    for prefix in prefixes:
        if shapes and all(name.startswith(prefix) for name in shapes):
            notes.append(f"prefix `{prefix}` stripped from every name")
            return prefix, frozenset()
    shared = {f"{_first(name)}." for name in shapes}
    if len(shared) == 1 and _looks_like_a_network(shapes, prefix := shared.pop()):
        notes.append(f"prefix `{printable(prefix)}` stripped from every name")
        return prefix, frozenset()
    for prefix in prefixes:
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        outside = {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}
        if _has_convolution(inside) and (step := _step_of_mixed(prefix, inside, outside, inert, notes)):
            return step
    return _step_without_prefix(shapes, notes)


def _step_of_mixed(
    prefix: str, inside: Shapes, outside: Shapes, inert: set[str], notes: list[str]
) -> tuple[str, frozenset[str]] | None:
    groups = _groups(outside)
    layers = {first for first, group in groups.items() if _is_layer(first, group)}
    heads = {first for first in layers if _is_head(first, groups[first])}
    if _has_head(inside):
        # Another classifier, or another wrapped network: which one is meant can't be told from here.
        if heads or any(f"{first}." in PREFIXES for first in layers):
            return None
        kept: set[str] = set()
    elif layers != heads or inside.keys() & outside.keys():
        return None
    else:
        kept = heads
    left_out = groups.keys() - kept
    if computing := {first for first in left_out if not _is_known_bystander(first, groups[first], inert)}:
        # It may scale, shift or filter what goes into the network or comes out of it.
        notes.append(
            f"names keep `{prefix}`: {_listed(_names_of(computing, groups))} beside it may be a part of the network. "
            "If so, --factory builds the whole of it; if not, save the state dict without it"
        )
        return None
    if kept:
        notes.append(f"prefix `{prefix}` stripped; {_listed(kept)} beside it kept, since it holds no classifier itself")
    else:
        notes.append(f"the network is taken from `{prefix}`")
    if left_out:
        notes.append(f"left out, as no part of the network: {_listed(_names_of(left_out, groups))}")
    return prefix, frozenset(left_out)


def _step_without_prefix(shapes: Shapes, notes: list[str]) -> tuple[str, frozenset[str]] | None:
    groups = _groups(shapes)
    left_out = {
        first
        for first, group in groups.items()
        if _BYSTANDER.fullmatch(first) or all(_is_pixel_statistic(name, shape) for name, shape in group.items())
    }
    rest = {name: shape for name, shape in shapes.items() if _first(name) not in left_out}
    if not left_out or not any(len(shape) > 1 for shape in rest.values()):
        return None
    notes.append(f"left out, as no part of the network: {_listed(_names_of(left_out, groups))}")
    return "", frozenset(left_out)


def _is_known_bystander(first: str, group: Shapes, inert: set[str]) -> bool:
    if _BYSTANDER.fullmatch(first) or is_ema(first):
        return True
    return all(name in inert or _is_pixel_statistic(name, shape) for name, shape in group.items())


def _is_pixel_statistic(name: str, shape: tuple[int, ...]) -> bool:
    return bool(_PIXEL_STATISTICS.fullmatch(name)) and math.prod(shape) in (1, 3)


def _groups(shapes: Shapes) -> dict[str, Shapes]:
    groups: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        groups.setdefault(_first(name), {})[name] = shape
    return groups


def _is_layer(first: str, group: Shapes) -> bool:
    """Whether a group of tensors could be a part of a network: it has a matrix, a kernel or running statistics."""
    if _BYSTANDER.fullmatch(first):
        return False
    return any(
        (len(shape) >= 2 and name.endswith("weight")) or name.endswith("running_var") for name, shape in group.items()
    )


def _is_head(first: str, group: Shapes) -> bool:
    """Whether a group is a classifier: matrices, or a single 1x1 convolution that is called as one."""
    kernels = [shape for shape in group.values() if len(shape) == 4]
    if any(shape[2:] != (1, 1) for shape in kernels):
        return False
    has_matrix = any(len(shape) == 2 and name.endswith("weight") for name, shape in group.items())
    return has_matrix or (len(kernels) == 1 and bool(_HEAD.fullmatch(first)))


def _has_head(shapes: Shapes) -> bool:
    """Whether a matrix is among them that is no gate of squeeze-and-excitation."""
    for name, shape in shapes.items():
        parts = name.split(".")
        is_matrix = len(shape) == 2 and parts[-1] == "weight"
        if is_matrix and not _BYSTANDER.fullmatch(parts[0]) and not any(_GATE.fullmatch(part) for part in parts):
            return True
    return False


def _looks_like_a_network(shapes: Shapes, prefix: str) -> bool:
    """Whether what lies behind `prefix` is a network: several parts, a convolution and a classifier among them."""
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    several = len({_first(name) for name in inside}) > 1 and all("." in name for name in inside)
    return several and prefix != "resnet." and _has_convolution(inside) and _has_head(inside)


def _has_convolution(shapes: Shapes) -> bool:
    return any(len(shape) == 4 for shape in shapes.values())


def _first(name: str) -> str:
    return name.partition(".")[0]


def _names_of(left_out: Any, groups: dict[str, Shapes]) -> list[str]:
    """A group of one tensor by that tensor's name, a larger one by its prefix."""
    return [next(iter(groups[first])) if len(groups[first]) == 1 else f"{first}.*" for first in sorted(left_out)]


def _listed(names: Any) -> str:
    return ", ".join(f"`{printable(name)}`" for name in sorted(names))
