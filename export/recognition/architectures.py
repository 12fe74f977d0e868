"""Recognition of the ResNet that a checkpoint holds, by its tensors' names and shapes alone, and its weights loaded.

Each row of `SCHEMES` turns the checkpoint's names into those of our networks; shapes then tell the rest. A row fits if
every tensor has a place and every place a tensor. Rows that fit and lead to the same computation are one answer; rows
that lead to different ones are refused, as nothing in the file tells which is right. Where no row fits, names are read
by what repeats in them.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fuseline.export.program import Program
from fuseline.export.recognition.altered_weights import effective_weights
from fuseline.export.recognition.architecture_names import name_of
from fuseline.export.recognition.candidate import Candidate, deviations, empty_module
from fuseline.export.recognition.choices import assumptions_of, choices_in, spec_with
from fuseline.export.recognition.classifier import Head, named_classifier
from fuseline.export.recognition.evidence import evidence_of
from fuseline.export.recognition.layer_settings import apply_layer_settings
from fuseline.export.recognition.modules.module_input_size import size_from_pool
from fuseline.export.recognition.naming.composed_naming import compose
from fuseline.export.recognition.naming.foreign_networks import foreign_kind
from fuseline.export.recognition.naming.naming_schemes import COMPOSED, SCHEMES, scheme_named
from fuseline.export.recognition.networks.resnet_spec import ResNetSpec
from fuseline.export.recognition.programs.program_check import FileFacts, apply_program
from fuseline.export.recognition.recognised import Recognised, Spec
from fuseline.export.recognition.recognition_refusals import ambiguity_of, refusal_of
from fuseline.export.recognition.renaming import names_in, tensors_in
from fuseline.export.recognition.settled_keys import settled_keys
from fuseline.export.recognition.timm_config import foreign_architecture
from fuseline.serve.errors import ArchitectureError

__all__ = ["Recognised", "ResNetSpec", "names_in", "recognise", "tensors_in", "with_values"]


def recognise(
    tensors: Mapping[str, Tensor],
    *,
    naming: str | None = None,
    config: Mapping[str, Any] = {},
    layer_settings: Mapping[str, Mapping[str, Any]] = {},
    program: Program | None = None,
    head: Head | None = None,
    assumed: Mapping[str, str] = {},
    head_name: str | None = None,
) -> Recognised:
    """Return the network of `tensors` (name to weights), loaded strictly; `num_batches_tracked` is not needed.

    The module's weights are `tensors` themselves, not copies, so that changing one changes the other.

    Args:
        tensors: float32.
        naming: name of the row of `SCHEMES`, or one of `COMPOSED`, to use instead of the one that fits.
        config: a Hugging Face config.json, whose strides and activation hold for a network of that naming; or timm's,
            which may name a network that no tensor reveals.
        layer_settings: each layer's name to its settings (type, stride, padding and so on), if the checkpoint held
            whole modules; they must agree with the network, and BatchNorm's eps is taken from them.
        program: program of a TorchScript file; it must compute what the network computes, and BatchNorm's eps is taken
            from it.
        head: weight (classes, features) and bias (classes,) of a classifier for a backbone without one.
        assumed: what `--assume` says about choices that no tensor tells, by key; see
            `fuseline.export.recognition.choices`.
        head_name: the module among `tensors` that is the classifier, where several could be; other heads are left out.

    Raises:
        InputError: `assumed` has a value that its choice hasn't.
        ArchitectureError: the tensors are no network of a known naming, or not exactly one, or two namings fit that
            compute differently; the message says what was found, what was expected, and which flag helps.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    weights, computed = effective_weights(plain)
    if head_name is not None:
        head_name = named_classifier(weights, head_name)
    schemes = () if naming in COMPOSED else SCHEMES if naming is None else (scheme_named(naming),)
    candidates = [Candidate.of(scheme, weights, head, head_name) for scheme in schemes]
    fits = _fits(candidates, config, assumed)
    reason: str | None = None
    if not fits and (naming is None or naming in COMPOSED) and not _is_known_otherwise(candidates, weights):
        composition = compose(weights)
        reason = composition.reason
        readings = [p for p in composition.placements if naming in (None, p.scheme.name)]
        composed = [Candidate.at(placement, weights, head, head_name) for placement in readings]
        fits = _fits(composed, config, assumed)
        candidates += composed
    if foreign := foreign_architecture(config, fits[0].spec if fits else None):
        raise ArchitectureError(foreign)
    if len(fits) > 1 and program is not None:
        fits = [fit for fit in fits if _computes(fit, program)] or fits
    if not fits:
        raise refusal_of(candidates, weights, config, head, naming=naming, reason=reason)
    if len(fits) > 1:
        raise ambiguity_of([fit.candidate.placement.scheme for fit in fits])
    if head is not None and fits[0].candidate.has_classifier:
        raise ArchitectureError(
            f"this network has a classifier of its own, {fits[0].candidate.placement.modules['fc']} for "
            f"{fits[0].spec.classes} classes; --head-from is for backbones without one: leave it out"
        )
    return _recognised(fits[0], config, layer_settings, program, computed, assumed)


def _is_known_otherwise(candidates: Iterable[Candidate], weights: Mapping[str, Tensor]) -> bool:
    """Return whether names that no row fits must not be read by what repeats in them."""
    # Only transformers has its names, and its config.json may say what no reading of names could.
    if any(c.is_whole and c.placement.scheme.name.startswith("huggingface") for c in candidates):
        return True
    return foreign_kind(weights, {scheme.classifier: None for scheme in SCHEMES}) is not None


@dataclass(frozen=True, eq=False)
class _Fit:
    candidate: Candidate
    spec: Spec
    module: nn.Module
    """The network of `spec` without its weights, on the meta device."""


def _fits(candidates: Iterable[Candidate], config: Mapping[str, Any], assumed: Mapping[str, str]) -> list[_Fit]:
    whole = (candidate for candidate in candidates if candidate.is_whole)
    found = [fit for candidate in whole if (fit := _fit(candidate, config, assumed)) is not None]
    # A scheme that has the classifier's very name is likelier than one that has another.
    return _without_repetitions([fit for fit in found if fit.candidate.is_as_named] or found)


def _fit(candidate: Candidate, config: Mapping[str, Any], assumed: Mapping[str, str]) -> _Fit | None:
    try:
        spec = candidate.spec(config)
    except ArchitectureError:
        return None
    spec = _with_assumed(spec, candidate.placement.scheme.name, assumed)
    module = empty_module(spec)
    return None if any(deviations(candidate, module).values()) else _Fit(candidate, spec, module)


def _without_repetitions(fits: Iterable[_Fit]) -> list[_Fit]:
    """Return `fits`, of those that compute the same from the same tensors only the first."""
    different: list[_Fit] = []
    for fit in fits:
        if not any(_compute_the_same(fit, other) for other in different):
            different.append(fit)
    return different


def _compute_the_same(one: _Fit, other: _Fit) -> bool:
    # The classifier is what is left over, so it is the same in both; its name may differ where --head-from gave it.
    bodies = [{item for item in fit.candidate.placed.items() if not item[0].startswith("fc.")} for fit in (one, other)]
    return one.spec == other.spec and bodies[0] == bodies[1]


def _with_assumed(spec: Spec, naming: str, assumed: Mapping[str, str]) -> Spec:
    taken = spec_with(spec, assumed)
    if isinstance(taken, ResNetSpec) and naming.startswith("huggingface"):
        # transformers' blocks have ReLU between their convolutions, whatever its config says about their ends.
        return replace(taken, inner_activation="relu")
    return taken


def _computes(fit: _Fit, program: Program) -> bool:
    try:
        apply_program(fit.module, _layer_names(fit), program)
    except ArchitectureError:
        return False
    return True


def _file_facts(
    module: nn.Module,
    layer_names: Mapping[str, str],
    layer_settings: Mapping[str, Mapping[str, Any]],
    program: Program | None,
) -> FileFacts:
    """Return what the file's layers or its program tell. Raise `ArchitectureError` where they contradict `module`."""
    if program is None:
        return apply_layer_settings(module, layer_names, layer_settings)
    return apply_program(module, layer_names, program)


def _value_that_the_file_has(
    fit: _Fit, layer_settings: Mapping[str, Mapping[str, Any]], program: Program | None
) -> str | None:
    """Return the flag that makes the network agree with the file's layers or program, if one choice is enough."""
    for choice in choices_in(fit.spec):
        for value in choice.known:
            other = _with_assumed(fit.spec, fit.candidate.placement.scheme.name, {choice.key: value})
            with contextlib.suppress(ArchitectureError):
                _file_facts(empty_module(other), _layer_names(fit), layer_settings, program)
                return f"--assume {choice.key}={value}"
    return None


def _layer_names(fit: _Fit) -> dict[str, str]:
    layers = dict.fromkeys(name.rpartition(".")[0] for name in fit.candidate.placed)
    return {layer: fit.candidate.placement.modules[layer] for layer in layers}


def _recognised(
    fit: _Fit,
    config: Mapping[str, Any],
    layer_settings: Mapping[str, Mapping[str, Any]],
    program: Program | None,
    computed: tuple[str, ...],
    assumed: Mapping[str, str],
) -> Recognised:
    module, spec, placement = fit.module, fit.spec, fit.candidate.placement
    _load(module, fit.candidate.found())
    layer_names = _layer_names(fit)
    try:
        file_facts = _file_facts(module, layer_names, layer_settings, program)
    except ArchitectureError as error:
        cure = _value_that_the_file_has(fit, layer_settings, program)
        raise ArchitectureError(f"{error}, or add {cure}, which is what the file has") if cure else error from None
    settled = settled_keys(placement.scheme, config, file_facts.settled)
    classifier = placement.modules["fc"]
    sizes = file_facts.input_sizes
    size, size_assumptions = size_from_pool(sizes, spec.in_channels) if sizes else (None, ())
    return Recognised(
        spec=spec,
        module=module,
        naming=placement.scheme.name,
        architecture=name_of(spec),
        evidence=(
            *evidence_of(spec, placement, len(fit.candidate.placed)),
            *fit.candidate.notes,
            *computed,
            *file_facts.evidence,
        ),
        layer_names=layer_names,
        classes=spec.classes,
        in_channels=spec.in_channels,
        # Grey pictures have no customary size: digits have 28 x 28 or 32 x 32, X-rays 224 x 224 and more.
        default_input_size=spec.default_input_size if spec.in_channels > 1 else None,
        implied_input_size=size,
        # `module` averages the whole map, whatever the size; the file's pool of a fixed kernel doesn't.
        takes_sizes=(sizes.smallest, sizes.largest) if sizes else None,
        assumptions=(
            *size_assumptions,
            *assumptions_of(
                spec,
                placement.scheme,
                classifier,
                settled=settled,
                flags=assumed,
                has_bias=fit.candidate.has_bias,
            ),
        ),
    )


def with_values(recognised: Recognised, values: Mapping[str, str]) -> nn.Module:
    """Return the network, eval mode, with the same tensors in the same memory, but other `values` of its choices.

    BatchNorm's eps stays that of `recognised` unless `values` has one.
    """
    spec = _with_assumed(recognised.spec, recognised.naming, values)
    module = empty_module(spec)
    _load(module, recognised.module.state_dict())
    if "eps" not in values:
        for name, layer in recognised.module.named_modules():
            if isinstance(layer, nn.BatchNorm2d) and isinstance(other := module.get_submodule(name), nn.BatchNorm2d):
                other.eps = layer.eps
    return module


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith("num_batches_tracked")}
    module.load_state_dict({**tensors, **counters}, assign=True)
    module.eval().requires_grad_(False)
