"""Why tensors are not recognised: the refusals, each with what came, what was expected, and what helps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from export.families.altered_weights import alteration_of
from export.families.candidate import Candidate, Head, deviations, empty_module
from export.families.foreign_networks import FACTORY, foreign_kind
from export.families.naming_schemes import SCHEMES, NamingScheme
from export.families.plain_network import PlainSpec
from export.families.recognised import Spec
from serve.errors import ArchitectureError

_NAMES_SHOWN = 6


def refusal_of(
    candidates: list[Candidate], weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head | None
) -> ArchitectureError:
    if foreign := foreign_kind(weights, {scheme.classifier: None for scheme in SCHEMES}):
        return ArchitectureError(foreign)
    best = _nearest(candidates, config)
    is_nearly_ours = bool(weights) and 2 * len(best.placed) >= len(weights)
    if altered := alteration_of(weights, is_nearly_ours=is_nearly_ours):
        return ArchitectureError(altered)
    scheme = best.placement.scheme
    headless = not any(ours.startswith("fc.") for ours in best.placed)
    is_other = headless and not best.is_whole if scheme.family == "plain" else not best.placement.blocks
    if not is_nearly_ours or is_other:
        return unknown(weights)
    if headless and best.is_whole:
        return ArchitectureError(
            f"this is a backbone without a classifier ({scheme.name} naming): {len(weights)} tensors, but no "
            f"{best.placement.in_checkpoint('fc.weight')}. Give a checkpoint that has one, a linear layer or a whole "
            "network: --head-from FILE"
        )
    placed = set(best.placed.values())
    try:
        spec = best.spec(config)
    except ArchitectureError as error:
        left = [f"{name} {tuple(tensor.shape)}" for name, tensor in weights.items() if name not in placed]
        return ArchitectureError(f"{error}{f'; {scheme.name} naming has no place for {_some(left)}' if left else ''}")
    if head is not None and (wrong := _wrong_head(head, spec)):
        return ArchitectureError(wrong)
    found = deviations(best, empty_module(spec))
    kinds = "; ".join(f"{kind}: {_some(items)}" for kind, items in found.items() if items)
    return ArchitectureError(
        f"these tensors are nearly a ResNet but not exactly one; nearest: {spec.name} ({scheme.name} naming, "
        f"{spec.classes} classes); {kinds}. Save the whole state dict of the trained model again; nothing is filled in "
        f"or left out. If the network is one of your own, {FACTORY}"
    )


def _nearest(candidates: Sequence[Candidate], config: Mapping[str, Any]) -> Candidate:
    """The candidate that places most, and of several the one with the fewest deviations."""
    most = max(len(candidate.placed) for candidate in candidates)

    def count_of_deviations(candidate: Candidate) -> float:
        try:
            module = empty_module(candidate.spec(config))
        except ArchitectureError:
            return math.inf
        return sum(map(len, deviations(candidate, module).values()))

    nearest = [candidate for candidate in candidates if len(candidate.placed) == most]
    return nearest[0] if len(nearest) == 1 or not most else min(nearest, key=count_of_deviations)


def _wrong_head(head: Head, spec: Spec) -> str | None:
    features = spec.widths[-1] if isinstance(spec, PlainSpec) else spec.out_widths[-1]
    shape = tuple(head[0].shape)
    if len(shape) == 2 and shape[1] == features and tuple(head[1].shape) == shape[:1]:
        return None
    came = f"--head-from has a weight {shape} and a bias {tuple(head[1].shape)}; "
    if len(shape) == 2 and shape[0] == features:
        return f"{came}it is transposed: expected was (classes, {features}), as nn.Linear has it; save weight.T"
    return f"{came}the backbone gives {features} features, so (classes, {features}) and (classes,) were expected"


def ambiguity_of(schemes: Sequence[NamingScheme]) -> ArchitectureError:
    choices = "; ".join(f"--naming {scheme.name} ({scheme.description})" for scheme in schemes)
    return ArchitectureError(
        f"these tensors fit {len(schemes)} namings that compute differently, and nothing in the file tells which it "
        f"is; say it: {choices}. Look into the code that trained it: the wrong one gives wrong answers"
    )


def unknown(tensors: Mapping[str, Tensor]) -> ArchitectureError:
    seen = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    others = ", ".join(scheme.name for scheme in SCHEMES[1:])
    return ArchitectureError(
        f"this is no ResNet that Fuseline knows: it holds {_some(seen) or 'no weights'}; expected torchvision's names "
        f"(conv1.weight, layer1.0.conv1.weight, fc.weight and so on) or one of the namings {others}. For any other "
        f"network, {FACTORY}"
    )


def _some(items: list[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
