"""The refusals of tensors that are not recognised: each says what came, what was expected, and what helps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fuseline.export.recognition.altered_weights import alteration_of
from fuseline.export.recognition.architecture_names import name_of
from fuseline.export.recognition.candidate import Candidate, deviations, empty_module
from fuseline.export.recognition.classifier import Head, described, features_of, heads_beside, is_matrix
from fuseline.export.recognition.naming.foreign_networks import (
    FACTORY,
    foreign_kind,
    several_networks,
)
from fuseline.export.recognition.naming.naming_schemes import SCHEMES, NamingScheme, scheme_named
from fuseline.export.recognition.naming.shape_reading import read_shapes
from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.recognised import Spec
from fuseline.serve.errors import ArchitectureError

RENAME = (
    "write the names that it needs with `fuseline inspect CHECKPOINT --rename-template names.json`, hold them against "
    "the code that trained it, and add --rename names.json"
)
_NAMES_SHOWN = 6


def refusal_of(
    candidates: list[Candidate],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    head: Head | None,
    *,
    naming: str | None = None,
    reason: str | None = None,
) -> ArchitectureError:
    """Return the refusal of `weights`, to which none of `candidates` fits.

    Args:
        naming: the naming that the user chose.
        reason: why the names by themselves tell no network.
    """
    if foreign := foreign_kind(weights, {scheme.classifier: None for scheme in SCHEMES}) or several_networks(weights):
        return ArchitectureError(foreign)
    if not candidates:
        return unknown(weights, reason, naming)
    best = _nearest(candidates, config)
    is_nearly_ours = bool(weights) and 2 * len(best.placed) >= len(weights)
    if altered := alteration_of(weights, is_nearly_ours=is_nearly_ours):
        return ArchitectureError(altered)
    scheme = best.placement.scheme
    headless = not any(ours.startswith("fc.") for ours in best.placed)
    is_other = headless and not best.is_whole if scheme.family == "plain" else not best.placement.blocks
    if not is_nearly_ours or is_other:
        return unknown(weights, reason, naming)
    if headless and best.is_whole:
        return ArchitectureError(
            f"this is a backbone without a classifier ({scheme.name} naming): {len(weights)} tensors, but no "
            f"{best.placement.in_checkpoint('fc.weight')}. Give a checkpoint that has one, a linear layer or a whole "
            "network: --head-from FILE"
        )
    if beside := _of_the_head(best):
        return ArchitectureError(beside)
    placed = set(best.placed.values())
    try:
        spec = best.spec(config)
    except ArchitectureError as error:
        if FACTORY in str(error):
            return error
        unplaced = [f"{name} {tuple(tensor.shape)}" for name, tensor in weights.items() if name not in placed]
        cure = _cure(left=bool(unplaced), misshapen=False, naming=naming)
        if reason and unplaced:
            return ArchitectureError(
                f"no known naming has a place for all of these tensors; the nearest, {scheme.name}, has none for "
                f"{_some(unplaced)}{_reading(reason)}. {cure}"
            )
        place = f"; {scheme.name} naming has no place for {_some(unplaced)}" if unplaced else ""
        return ArchitectureError(f"{error}{place}. {cure}")
    if head is not None and (wrong := _wrong_head(head, spec)):
        return ArchitectureError(wrong)
    found = deviations(best, empty_module(spec))
    left = bool(found["left over"])
    kinds = "; ".join(f"{kind}: {_some(items)}" for kind, items in found.items() if items)
    if sum(map(len, found.values())) == 1 and (wide := _unpooled(best, spec)):
        return ArchitectureError(wide)
    return ArchitectureError(
        f"these tensors are nearly a ResNet but not exactly one; nearest: {name_of(spec)} ({scheme.name} naming, "
        f"{spec.classes} classes); {kinds}. Nothing is filled in or left out{_reading(reason if left else None)}. "
        f"{_cure(left=left, misshapen=bool(found['misshapen']), naming=naming)}"
    )


def _of_the_head(candidate: Candidate) -> str | None:
    """Return a message if only the matrices beside a backbone keep it from being a whole network, else None."""
    heads = heads_beside(candidate.placement, candidate.tensors)
    matrices = {name: tensor for name, tensor in heads.items() if is_matrix(name, tensor)}
    features = features_of(candidate.placement, candidate.tensors)
    if candidate.has_classifier:
        name = f"{candidate.placement.modules['fc']}.weight"
        weight = candidate.tensors[name]
        # A multiple of the features belongs to a map that isn't pooled to one pixel; `_unpooled` says so.
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


def _reading(reason: str | None) -> str:
    return f". Read by its own names alone, {reason}" if reason else ""


def _cure(*, left: bool, misshapen: bool, naming: str | None) -> str:
    """Return what to type, given whether tensors are left over or have other shapes than in the nearest network."""
    if naming is not None:
        return f"Leave --naming {naming} out to have the names told, or {FACTORY}"
    if left:
        return f"If only its names differ, {RENAME}. If the network is one of your own, {FACTORY}"
    if misshapen:
        return f"If the network is one of your own, with these shapes, {FACTORY}"
    return (
        f"If the file was filtered or cut, save model.state_dict() whole. If the network is one of your own, {FACTORY}"
    )


def _unpooled(candidate: Candidate, spec: Spec) -> str | None:
    """Return a message if the classifier takes more than one pixel of the last feature map, else None."""
    weight = candidate.found().get("fc.weight")
    channels = spec.widths[-1] if isinstance(spec, PlainSpec) else spec.out_widths[-1]
    if weight is None or weight.ndim != 2 or weight.shape[1] <= channels or weight.shape[1] % channels:
        return None
    name = candidate.placement.in_checkpoint("fc.weight")
    return (
        f"the classifier {name} {tuple(weight.shape)} takes {weight.shape[1]} features, "
        f"{weight.shape[1] // channels} for each of the {channels} channels that the last stage gives out. So there is "
        "no global average pool before it: the feature map is flattened behind a smaller pool or none, or several "
        f"pools are joined, which no tensor tells. The nearest network that is recognised, {name_of(spec)}, averages "
        f"each channel to one feature; to export this one, {FACTORY}"
    )


def _nearest(candidates: Sequence[Candidate], config: Mapping[str, Any]) -> Candidate:
    """Return the candidate that places most tensors; of several, the one with the fewest deviations."""
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
    if len({scheme.name for scheme in schemes}) < len(schemes):
        readings = "; ".join(scheme.description for scheme in schemes)
        return ArchitectureError(
            f"these tensors' names can be read in {len(schemes)} ways that compute differently, and nothing in the "
            f"file tells which it is: {readings}. Say it by names: {RENAME}; or {FACTORY}"
        )
    choices = "; ".join(f"--naming {scheme.name} ({scheme.description})" for scheme in schemes)
    return ArchitectureError(
        f"these tensors fit {len(schemes)} namings that compute differently, and nothing in the file tells which it "
        f"is; say it: {choices}. Look into the code that trained it: the wrong one gives wrong answers"
    )


def unknown(tensors: Mapping[str, Tensor], reason: str | None = None, naming: str | None = None) -> ArchitectureError:
    """Return the refusal of tensors that are near to no naming, with what shapes and order suggest."""
    if naming is not None and tensors:
        seen = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
        return ArchitectureError(
            f"--naming {naming} doesn't fit: it holds {_some(seen)}, few of which have a place there. Leave "
            f"--naming {naming} out to have the names told, or {FACTORY}"
        )
    seen = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    others = ", ".join(scheme.name for scheme in SCHEMES[1:])
    return ArchitectureError(
        f"this is no ResNet that Fuseline knows: it holds {_some(seen) or 'no weights'}; expected torchvision's names "
        f"(conv1.weight, layer1.0.conv1.weight, fc.weight and so on) or one of the namings {others}"
        f"{_reading(reason)}. {_suggestion(tensors)}For any other network, {FACTORY}"
    )


def _suggestion(tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence on the network that shapes and order suggest; "" where that isn't a whole one."""
    reading = read_shapes(tensors)
    if not reading.is_whole or len(set(reading.names.values())) < len(reading.names):
        return ""
    renamed = {ours: tensors[theirs] for theirs, ours in reading.names.items()}
    candidate = Candidate.of(scheme_named("torchvision"), renamed, None)
    try:
        spec = candidate.spec({})
    except ArchitectureError:
        return ""
    if not candidate.is_whole or any(deviations(candidate, empty_module(spec)).values()):
        return ""
    doubt = (
        ""
        if reading.projections
        else ", but nothing tells whether shortcuts exist, as a plain network has the same shapes"
    )
    return f"Its shapes and their order are those of a {name_of(spec)}{doubt}. If it is that: {RENAME}. "


def _some(items: list[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
