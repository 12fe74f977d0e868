"""The tensors of a checkpoint that are the network, and their names without wrappers' prefixes.

Wrappers put a prefix before the names of the network that they hold: `module.` (DistributedDataParallel), `_orig_mod.`
(torch.compile), `model.` or `net.` (a LightningModule's attribute), or the name of any other attribute. Beside the
network there may be what training needed: a loss's class weights, metrics, a teacher, a projection head.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuseline.export.checkpoint.training_parts import (
    Shapes,
    first_of,
    groups_of,
    has_convolution,
    has_head,
    holds_network,
    is_bystander,
    is_copy,
    is_ema,
    is_head,
    is_layer,
    is_pixel_statistic,
    is_pretraining,
    is_projection,
)

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
"""Known prefixes, in the order in which they are looked for where several fit."""

_HUGGING_FACE = "resnet.embedder."  # where a name begins so, `resnet.` is a part of the scheme's names

# These may come before any part of a name, and never name a part of a network.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass
class Names:
    """The steps that turn names of the file into names of the network."""

    notes: list[str] = field(default_factory=list)
    _steps: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def renamed(self, name: str) -> str | None:
        """Return the network's name of the file's tensor or layer `name`; None if it is no part of the network."""
        dotted = f"{name}."  # so that a layer that is the wrapper itself loses its whole name
        for prefix, left_out in self._steps:
            if first_of(dotted) in left_out:
                return None
            dotted = dotted.replace(prefix, "") if prefix in _INFIXES else dotted.removeprefix(prefix)
        return dotted.removesuffix(".") or None

    def stages(self, tensors: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (what the steps so far removed, for people; `tensors` by their names then) before each step."""
        gone: list[str] = []
        for count, (prefix, left_out) in enumerate(self._steps):
            before = Names([], self._steps[:count])
            yield (
                ", ".join(gone),
                {new: value for name, value in tensors.items() if (new := before.renamed(name)) is not None},
            )
            gone += [f"`{printable(prefix)}`"] if prefix else [f"`{printable(first)}.*`" for first in sorted(left_out)]


def network_names(tensors: Mapping[str, Any], *, pretraining: bool | None = None) -> Names:
    """Return the names of the network among `tensors`, by their names and shapes, and the values of repeated weights.

    A prefix is removed if a whole network is behind it, and if either every name has it, or nothing beside it computes
    anything but the classifier that the network lacks. Where it isn't clear what the network is, as with two networks
    or two classifiers, names stay as they are.

    Args:
        pretraining: whether the file comes from self-supervised training, whose heads are no classifiers and are left
            out; None: the names tell it.
    """
    if pretraining is None:
        pretraining = is_pretraining(shapes_of(tensors))
    return _Steps(tensors, pretraining).taken()


def shapes_of(tensors: Mapping[Any, Any]) -> Shapes:
    """Return the shape of each tensor by its name; () for a value without one."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items() if isinstance(name, str)}


def pixel_statistics(tensors: Mapping[Any, Any]) -> dict[str, list[float]]:
    """Return the flat `mean` and `std` of a layer that normalises images: buffers such as `normalize.mean`, or {}."""
    found: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and is_pixel_statistic(name, tuple(tensor.shape)):
            found.setdefault(name[-4:].lstrip("._"), tensor.flatten().tolist())
    return found if found.keys() == {"mean", "std"} else {}


def averaged_group(name: str) -> str | None:
    """Return the prefix of an averaged weight's name, with wrappers': `module.ema_model.`; None of a plain weight."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if is_ema(part):
            return ".".join(parts[: index + 1]) + "."
        if f"{part}." not in (*PREFIXES, *_INFIXES):
            return None
    return None


def printable(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 can't hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Steps:
    """Removes one wrapper's prefix after the other, until none is left."""

    def __init__(self, tensors: Mapping[str, Any], pretraining: bool) -> None:
        self._names = Names()
        self._notes = self._names.notes
        self._tensors = tensors
        self._pretraining = pretraining
        self._behind: dict[str, str] = {}
        """Names after the steps so far, to those of the file."""
        self._shapes: Shapes = {}
        self._inert: set[str] = set()
        """Names of tensors of whole numbers."""

    def taken(self) -> Names:
        while True:
            self._behind = {new: name for name in self._tensors if (new := self._names.renamed(name)) is not None}
            self._shapes = {new: tuple(getattr(self._tensors[name], "shape", ())) for new, name in self._behind.items()}
            self._inert = {
                new
                for new, name in self._behind.items()
                if isinstance(tensor := self._tensors[name], Tensor) and not tensor.is_floating_point()
            }
            step = self._next()
            if step is None:
                return self._names
            self._names._steps.append(step)

    def _next(self) -> tuple[str, frozenset[str]] | None:
        shapes = self._shapes
        for infix in _INFIXES:
            if any(infix in name for name in shapes):
                everywhere = all(name.startswith(infix) for name in shapes)
                self._notes.append(f"prefix `{infix}` stripped from {'every name' if everywhere else 'names'}")
                return infix, frozenset()
        groups = groups_of(shapes)
        prefixes = [p for p in PREFIXES if p != "resnet." or not any(name.startswith(_HUGGING_FACE) for name in shapes)]
        if len(groups) == 1 and all("." in name for name in shapes):
            (first,) = groups
            if f"{first}." in prefixes or (first != "resnet" and holds_network(shapes)):
                self._notes.append(f"prefix `{printable(first)}.` stripped from every name")
                return f"{first}.", frozenset()
        known = [
            first for prefix in prefixes if (first := first_of(prefix)) in groups and has_convolution(groups[first])
        ]
        others = [
            first
            for first in groups
            if f"{first}." not in PREFIXES and not _serves_training(first) and holds_network(groups[first])
        ]
        for first in (*known, *others):
            if all(name.startswith(f"{first}.") for name in groups[first]) and (step := self._of_mixed(first, groups)):
                return step
        return self._without_prefix(groups)

    def _of_mixed(self, taken: str, groups: Mapping[str, Shapes]) -> tuple[str, frozenset[str]] | None:
        """Return the step that takes the network in `taken`, beside which there are other groups; None if unclear."""
        prefix = f"{taken}."
        inside = {name.removeprefix(prefix): shape for name, shape in groups[taken].items()}
        beside = {first: group for first, group in groups.items() if first != taken}
        layers = {first for first, group in beside.items() if is_layer(first, group)}
        layers -= {first for first in layers if self._repeats(taken, first)}
        if self._pretraining:
            layers -= {first for first in layers if is_projection(first)}
        heads = {first for first in layers if is_head(first, beside[first])}
        if has_head(inside) and not self._pretraining:
            # There is another classifier or network, and nothing tells which one is meant.
            if heads or any(f"{first}." in PREFIXES or holds_network(beside[first]) for first in layers):
                return None
            kept: set[str] = set()
        elif layers != heads or (self._pretraining and heads) or any(name in self._shapes for name in inside):
            return None
        else:
            kept = heads
        left_out = beside.keys() - kept
        computing = {
            first for first in left_out if first in layers or not self._is_known_bystander(taken, first, beside)
        }
        if computing:
            # What computes beside the network may change its input or output.
            self._notes.append(
                f"names keep `{printable(prefix)}`: {_listed(_names_of(computing, groups))} beside it may be a part of "
                "the network. If so, --factory builds the whole of it; if not, "
                f"--take {printable(taken)} takes the network without it"
            )
            return None
        if kept:
            self._notes.append(
                f"prefix `{printable(prefix)}` stripped; {_listed(kept)} beside it kept, since it holds no classifier "
                "itself"
            )
        else:
            self._notes.append(f"the network is taken from `{printable(prefix)}`")
        self._note_left_out(left_out, groups)
        return prefix, frozenset(left_out)

    def _without_prefix(self, groups: Mapping[str, Shapes]) -> tuple[str, frozenset[str]] | None:
        left_out = {
            first
            for first, group in groups.items()
            if is_bystander(first) or all(is_pixel_statistic(name, shape) for name, shape in group.items())
        }
        if self._pretraining and not any(map(holds_network, groups.values())):
            heads = {first for first, group in groups.items() if is_head(first, group)} - left_out
            # A classifier may have been trained beside a projection head; nothing tells whether it takes that head's
            # features.
            if all(is_projection(first) for first in heads) or not any(map(is_projection, heads)):
                left_out |= heads
        rest = {name: shape for name, shape in self._shapes.items() if first_of(name) not in left_out}
        if not left_out or not any(len(shape) > 1 for shape in rest.values()):
            return None
        self._note_left_out(left_out, groups)
        return "", frozenset(left_out)

    def _note_left_out(self, left_out: Iterable[str], groups: Mapping[str, Shapes]) -> None:
        if not left_out:
            return
        self._notes.append(f"left out, as no part of the network: {_listed(_names_of(left_out, groups))}")
        for first in sorted(left_out):
            if is_copy(first) and has_convolution(groups[first]):
                self._notes.append(f"`{printable(first)}.*` holds a network too: --take {printable(first)} takes it")
            elif self._pretraining and is_head(first, groups[first]):
                self._notes.append(
                    f"`{printable(first)}.*` is a head of self-supervised training, no classifier: --head-from FILE "
                    "gives one"
                )

    def _is_known_bystander(self, taken: str, first: str, groups: Mapping[str, Shapes]) -> bool:
        if is_bystander(first) or is_ema(first) or (self._pretraining and is_projection(first)):
            return True
        group = groups[first]
        return self._repeats(taken, first) or all(
            name in self._inert or is_pixel_statistic(name, shape) for name, shape in group.items()
        )

    def _repeats(self, taken: str, first: str) -> bool:
        """Return whether `first` repeats the weights of `taken`, with at most projection heads besides."""
        own = {name.removeprefix(f"{taken}."): name for name in self._shapes if name.startswith(f"{taken}.")}
        others = [name for name in self._shapes if name.startswith(f"{first}.")]
        parts = {name: name.split(".")[1:] for name in others}
        repeated = {
            name: next((own[tail] for k in (0, 1) if (tail := ".".join(p[k:])) in own), "") for name, p in parts.items()
        }
        if len({original for original in repeated.values() if original}) < len(own):
            return False
        return all(
            self._are_equal(name, original) if original else any(map(is_projection, parts[name]))
            for name, original in repeated.items()
        )

    def _are_equal(self, one: str, other: str) -> bool:
        first, second = self._tensors[self._behind[one]], self._tensors[self._behind[other]]
        return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)


def _serves_training(first: str) -> bool:
    return is_bystander(first) or is_ema(first)


def _names_of(left_out: Iterable[str], groups: Mapping[str, Shapes]) -> list[str]:
    """Return, for people, the name of a group's only tensor, or the prefix of a larger group."""
    return [next(iter(groups[first])) if len(groups[first]) == 1 else f"{first}.*" for first in sorted(left_out)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{printable(name)}`" for name in sorted(names))
