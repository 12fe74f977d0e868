"""Which ResNet a checkpoint holds, told from its tensors' names and shapes alone, and that network with its weights.

Each row of `SCHEMES` turns the checkpoint's names into those of our networks; shapes then say the rest. A row fits when
every tensor finds its place and every place its tensor. Rows that fit and lead to the same computation are one answer;
rows that lead to different ones are refused, as nothing in the file tells which is right.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.families.altered_weights import effective_weights
from export.families.candidate import Candidate, Head, deviations, empty_module
from export.families.evidence import evidence_of, unseen_of, unseen_without_modules
from export.families.foreign_networks import foreign_architecture
from export.families.layer_settings import apply_layer_settings
from export.families.naming_schemes import SCHEMES, scheme_named
from export.families.program_check import EVERYTHING, hold_program
from export.families.recognised import Recognised, Spec
from export.families.recognition_refusals import ambiguity_of, refusal_of
from export.families.renaming import names_in, tensors_in
from export.families.resnet_spec import ResNetSpec
from export.program import Program
from serve.errors import ArchitectureError

__all__ = ["Recognised", "ResNetSpec", "names_in", "recognise", "tensors_in"]


def recognise(
    tensors: Mapping[str, Tensor],
    *,
    naming: str | None = None,
    config: Mapping[str, Any] = {},
    layer_settings: Mapping[str, Mapping[str, Any]] = {},
    program: Program | None = None,
    head: Head | None = None,
) -> Recognised:
    """The network that `tensors` (name to weights) are, loaded strictly. `num_batches_tracked` is not needed.

    The module's weights are `tensors`, not copies of them: what changes the one changes the other.

    Args:
        tensors: float32.
        naming: a row of `SCHEMES` by its name, instead of the one that fits.
        config: a Hugging Face config.json, whose strides and activation hold for a network of that naming; or timm's,
            which may name a network that no tensor gives away.
        layer_settings: of a checkpoint that held whole modules, each layer's name to its settings (type, stride,
            padding and so on); they must agree with the network, and BatchNorm's eps is taken from them.
        program: of a TorchScript file; it must compute what the network computes, and BatchNorm's eps is taken from it.
        head: weight (classes, features) and bias (classes,) of a classifier for a backbone without one.

    Raises:
        ArchitectureError: they are no network of a known naming, or not exactly one, or two namings fit that compute
            differently: the message says what was found, what was expected, and which flag helps.
    """
    if foreign := foreign_architecture(config):
        raise ArchitectureError(foreign)
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    weights, computed = effective_weights(plain)
    schemes = SCHEMES if naming is None else (scheme_named(naming),)
    candidates = [Candidate.of(scheme, weights, head) for scheme in schemes]
    whole = [candidate for candidate in candidates if candidate.is_whole]
    fits = _without_repetitions(fit for candidate in whole if (fit := _fit(candidate, config)) is not None)
    if len(fits) > 1 and program is not None:
        fits = [fit for fit in fits if _computes(fit, program)] or fits
    if not fits:
        raise refusal_of(candidates, weights, config, head)
    if len(fits) > 1:
        raise ambiguity_of([fit.candidate.placement.scheme for fit in fits])
    if head is not None and fits[0].candidate.has_classifier:
        raise ArchitectureError(
            f"this network has a classifier of its own, {fits[0].candidate.placement.modules['fc']} for "
            f"{fits[0].spec.classes} classes; --head-from is for backbones without one: leave it out"
        )
    return _recognised(fits[0], config, layer_settings, program, computed)


@dataclass(frozen=True, eq=False)
class _Fit:
    candidate: Candidate
    spec: Spec
    module: nn.Module
    """Without its weights, on the meta device."""


def _fit(candidate: Candidate, config: Mapping[str, Any]) -> _Fit | None:
    try:
        spec = candidate.spec(config)
    except ArchitectureError:
        return None
    module = empty_module(spec)
    return None if any(deviations(candidate, module).values()) else _Fit(candidate, spec, module)


def _without_repetitions(fits: Iterable[_Fit]) -> list[_Fit]:
    """The first of those that compute the same from the same tensors."""
    different: list[_Fit] = []
    for fit in fits:
        if not any(_compute_the_same(fit, other) for other in different):
            different.append(fit)
    return different


def _compute_the_same(one: _Fit, other: _Fit) -> bool:
    # The classifier takes what is left over, so it is the same; a head from elsewhere has each scheme's name for it.
    bodies = [{item for item in fit.candidate.placed.items() if not item[0].startswith("fc.")} for fit in (one, other)]
    return one.spec == other.spec and bodies[0] == bodies[1]


def _computes(fit: _Fit, program: Program) -> bool:
    try:
        hold_program(fit.module, _layer_names(fit), program)
    except ArchitectureError:
        return False
    return True


def _layer_names(fit: _Fit) -> dict[str, str]:
    layers = dict.fromkeys(name.rpartition(".")[0] for name in fit.candidate.placed)
    return {layer: fit.candidate.placement.modules[layer] for layer in layers}


def _recognised(
    fit: _Fit,
    config: Mapping[str, Any],
    layer_settings: Mapping[str, Mapping[str, Any]],
    program: Program | None,
    computed: tuple[str, ...],
) -> Recognised:
    module, spec, placement = fit.module, fit.spec, fit.candidate.placement
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith("num_batches_tracked")}
    module.load_state_dict(fit.candidate.found() | counters, assign=True)
    module.eval().requires_grad_(False)
    layer_names = _layer_names(fit)
    if program is None:
        told = apply_layer_settings(module, layer_names, layer_settings)
    else:
        told = hold_program(module, layer_names, program)
    # A whole module's layers were held against the network just now, and transformers' config.json says the rest.
    described = placement.scheme.name.startswith("huggingface") and config.get("model_type") == "resnet"
    untold = () if layer_settings or described else (unseen_without_modules(placement.scheme),)
    unseen = (*unseen_of(spec, placement.scheme, placement.modules["fc"], config), *untold)
    return Recognised(
        spec=spec,
        module=module,
        naming=placement.scheme.name,
        architecture=spec.name,
        evidence=(*evidence_of(spec, placement, len(fit.candidate.placed)), *computed, *told.evidence),
        layer_names=layer_names,
        classes=spec.classes,
        in_channels=spec.in_channels,
        default_input_size=spec.default_input_size,
        told_input_size=told.input_size,
        unseen=() if told.settled == EVERYTHING else unseen,
    )
