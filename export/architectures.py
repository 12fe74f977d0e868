"""Which ResNet a checkpoint holds, told from its tensors' names and shapes alone, and that network with its weights.

Two steps: a row of `SCHEMES` turns the checkpoint's names into those of `export.resnet`; shapes then say the rest.
Every tensor must find its place and every place its tensor.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from export.naming_schemes import SCHEMES, NamingScheme
from export.resnet import ConvRole, ResNet, ResNetSpec, conv_bn_pairs
from serve.errors import ArchitectureError

__all__ = ["Recognised", "ResNetSpec", "conv_bn_pairs", "recognise", "spec_from_tensors"]

Shape = tuple[int, ...]

_NAMES_SHOWN = 6
_BN_LEAVES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Recognised:
    """A ResNet in eval mode with the checkpoint's weights, which it owns."""

    spec: ResNetSpec
    module: ResNet
    naming: str
    """Name of the naming scheme."""
    layer_names: Mapping[str, str]
    """The module's submodule names to the checkpoint's, for every layer with weights."""


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """The ResNet that `tensors` (name to weights) are, loaded strictly. `num_batches_tracked` is not needed.

    Raises:
        ArchitectureError: they are no ResNet of a known naming, or not exactly one: the message names every kind of
            deviation, some tensors of each, and the nearest architecture.
    """
    spec, names = _spec_and_names(tensors)
    with torch.device("meta"):
        module = ResNet(spec)
    expected = {name: place for name, place in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    _check_strictly(tensors, names, {name: tuple(place.shape) for name, place in expected.items()}, spec)
    module.to_empty(device="cpu")
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith("num_batches_tracked")}
    module.load_state_dict({name: tensors[names.in_checkpoint(name)] for name in expected} | counters)
    module.eval().requires_grad_(False)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in expected)
    return Recognised(spec, module, names.scheme.name, {layer: names.modules[layer] for layer in layers})


def spec_from_tensors(tensors: Mapping[str, Tensor]) -> ResNetSpec:
    """The spec that most of `tensors` agree on; only names and shapes are read, nothing is proven to fit.

    Raises:
        ArchitectureError: they are no ResNet of a known naming, or too little of one.
    """
    return _spec_and_names(tensors)[0]


@dataclass(frozen=True, eq=False)
class _Names:
    """One scheme applied to one checkpoint: `modules` maps `ResNet`'s module names to the checkpoint's."""

    scheme: NamingScheme
    blocks: frozenset[tuple[int, int]]
    """(stage, block) that the checkpoint has, both from 0."""
    modules: Mapping[str, str]

    def in_checkpoint(self, canonical: str) -> str:
        module, _, leaf = canonical.rpartition(".")
        return f"{self.modules[module]}.{leaf}"

    def canonical(self, tensor_names: Iterable[str]) -> dict[str, str]:
        """Canonical tensor name to the checkpoint's, of those that the scheme knows."""
        inverse = {theirs: ours for ours, theirs in self.modules.items()}
        split = ((name, *name.rpartition(".")) for name in tensor_names)
        return {f"{inverse[module]}.{leaf}": name for name, module, _, leaf in split if module in inverse}


def _spec_and_names(tensors: Mapping[str, Tensor]) -> tuple[ResNetSpec, _Names]:
    weights = [name for name in tensors if not name.endswith("num_batches_tracked")]
    known = {names: names.canonical(weights) for names in (_apply(scheme, weights) for scheme in SCHEMES)}
    best = max(known, key=lambda names: len(known[names]))
    if not best.blocks or 2 * len(known[best]) < len(weights):
        raise _unknown(tensors, weights)
    shapes = {ours: tuple(tensors[theirs].shape) for ours, theirs in known[best].items()}
    return _infer(shapes, _blocks_per_stage(best), best), best


def _apply(scheme: NamingScheme, tensor_names: Iterable[str]) -> _Names:
    number = r"(0|[1-9]\d{0,3})"
    pattern = re.escape(scheme.block).replace(r"\{stage\}", number).replace(r"\{block\}", number)
    matches = (re.match(pattern + r"\.", name) for name in tensor_names)
    numbers = ((int(m[1]) - scheme.first_stage, int(m[2])) for m in matches if m)
    blocks = frozenset((stage, block) for stage, block in numbers if stage >= 0)
    modules = {"conv1": scheme.stem[0], "bn1": scheme.stem[1], "fc": scheme.classifier}
    for stage, block in sorted(blocks):
        ours = f"layer{stage + 1}.{block}"
        theirs = scheme.block.format(stage=stage + scheme.first_stage, block=block)
        for k, (conv, bn) in enumerate(scheme.convs, start=1):
            modules |= {f"{ours}.conv{k}": f"{theirs}.{conv}", f"{ours}.bn{k}": f"{theirs}.{bn}"}
        for k, part in enumerate(scheme.shortcut):
            modules[f"{ours}.downsample.{k}"] = f"{theirs}.{part}"
    return _Names(scheme, blocks, modules)


def _blocks_per_stage(names: _Names) -> tuple[int, ...]:
    counts = Counter(stage for stage, _ in names.blocks)
    wanted = {(stage, block) for stage in range(max(counts) + 1) for block in range(counts[stage] or 1)}
    if gaps := wanted - names.blocks:
        stage, block = min(gaps)
        gap = names.scheme.block.format(stage=stage + names.scheme.first_stage, block=block)
        raise ArchitectureError(
            f"this is not all of a ResNet ({names.scheme.name} naming): no tensor's name begins with {gap}, but later "
            f"stages or blocks are there; expected stages from {names.scheme.first_stage} and blocks from 0 on, "
            "without a gap. Save the whole state dict again"
        )
    return tuple(counts[stage] for stage in range(len(counts)))


def _infer(shapes: Mapping[str, Shape], blocks_per_stage: tuple[int, ...], names: _Names) -> ResNetSpec:
    """Each number is what most tensors say, so that one misshapen tensor is found out rather than believed."""
    blocks = [f"layer{stage + 1}.{block}" for stage, block in sorted(names.blocks)]
    thirds = sum(f"{block}.conv3.weight" in shapes or f"{block}.bn3.weight" in shapes for block in blocks)
    bottleneck = 2 * thirds > len(blocks)
    last = 3 if bottleneck else 2

    def width(modules: Iterable[tuple[str, str]], what: str) -> int:
        pairs = list(modules)
        seen = [_size(shapes, f"{conv}.weight", 0) for conv, _ in pairs]
        seen += [_size(shapes, f"{bn}.{leaf}", 0) for _, bn in pairs for leaf in _BN_LEAVES]
        return _most_common(seen, what)

    def widths(conv: int) -> tuple[int, ...]:
        return tuple(
            width(
                ((f"layer{stage}.{block}.conv{conv}", f"layer{stage}.{block}.bn{conv}") for block in range(count)),
                f"the width of stage {stage}'s convolution {conv}",
            )
            for stage, count in enumerate(blocks_per_stage, start=1)
        )

    inner, out = widths(1), widths(last)
    stem_width = width([("conv1", "bn1")], "the width of the first convolution")
    kernel = _size(shapes, "conv1.weight", 2) or (3 if len(blocks_per_stage) == 3 else 7)
    projected = tuple(
        any(name.startswith(f"layer{stage}.0.downsample.") for name in shapes)
        for stage in range(1, len(blocks_per_stage) + 1)
    )
    # Parameter-free shortcuts are believed only where He et al. have them; elsewhere the shortcuts are missing.
    option_a = (
        not any(projected)
        and not bottleneck
        and kernel == 3
        and len(blocks_per_stage) == 3
        and out == tuple(stem_width * 2**stage for stage in range(3))
    )
    if not option_a:
        projected = tuple(found or stage > 0 or stem_width != out[0] for stage, found in enumerate(projected))
    return ResNetSpec(
        block="bottleneck" if bottleneck else "basic",
        stem="3x3" if kernel == 3 else "7x7-maxpool",
        stem_width=stem_width,
        blocks_per_stage=blocks_per_stage,
        inner_widths=inner,
        out_widths=out,
        projected_stages=projected,
        classes=_most_common(
            (_size(shapes, f"fc.{leaf}", 0) for leaf in ("weight", "bias")),
            f"the number of classes, the rows of {names.in_checkpoint('fc.weight')},",
        ),
        groups=_groups(shapes, blocks, inner) if bottleneck else 1,
        in_channels=_size(shapes, "conv1.weight", 1) or 3,
        biased_convs=frozenset(
            role for name in shapes if name.endswith(".bias") and (role := _role(name.removesuffix(".bias")))
        ),
    )


def _groups(shapes: Mapping[str, Shape], blocks: Iterable[str], inner_widths: Iterable[int]) -> int:
    """A grouped convolution's weight has only its group's input channels."""
    seen: Counter[int] = Counter()
    for block in blocks:
        whole, part = _size(shapes, f"{block}.conv1.weight", 0), _size(shapes, f"{block}.conv2.weight", 1)
        if whole and part and whole % part == 0:
            seen[whole // part] += 1
    groups = seen.most_common(1)[0][0] if seen else 1
    return groups if all(width % groups == 0 for width in inner_widths) else 1


def _role(conv: str) -> ConvRole | None:
    if conv == "conv1":
        return "stem"
    last: dict[str, ConvRole] = {".conv1": "conv1", ".conv2": "conv2", ".conv3": "conv3", ".downsample.0": "shortcut"}
    return next((role for ending, role in last.items() if conv.endswith(ending)), None)


def _size(shapes: Mapping[str, Shape], name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) and shape[axis] > 0 else None


def _most_common(values: Iterable[int | None], what: str) -> int:
    counts = Counter(value for value in values if value is not None)
    if not counts:
        raise ArchitectureError(f"{what} can't be told: no tensor says it; save the whole state dict")
    return counts.most_common(1)[0][0]


def _check_strictly(
    tensors: Mapping[str, Tensor], names: _Names, expected: Mapping[str, Shape], spec: ResNetSpec
) -> None:
    found = {ours: tensors[theirs] for ours, theirs in names.canonical(tensors).items()}
    placed = {names.in_checkpoint(ours) for ours in expected}
    missing = [f"{names.in_checkpoint(name)} {shape}" for name, shape in expected.items() if name not in found]
    left_over = [
        f"{name} {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name not in placed and not name.endswith("num_batches_tracked")
    ]
    misshapen = [
        f"{names.in_checkpoint(name)} is {tuple(found[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    no_floats = [
        f"{names.in_checkpoint(name)} is {tensor.dtype}"
        for name, tensor in found.items()
        if name in expected and not tensor.is_floating_point()
    ]
    kinds = {"missing": missing, "left over": left_over, "misshapen": misshapen, "not of floats": no_floats}
    if deviations := [f"{kind}: {_some(items)}" for kind, items in kinds.items() if items]:
        raise ArchitectureError(
            f"these tensors are nearly a ResNet but not exactly one; nearest: {spec.name} ({names.scheme.name} naming, "
            f"{spec.classes} classes); {'; '.join(deviations)}. Save the whole state dict of the trained model again; "
            "nothing is filled in or left out"
        )


def _unknown(tensors: Mapping[str, Tensor], weights: list[str]) -> ArchitectureError:
    seen = [f"{name} {tuple(tensors[name].shape)}" for name in weights]
    others = ", ".join(scheme.name for scheme in SCHEMES[1:])
    return ArchitectureError(
        f"this is no ResNet that Fuseline knows: it holds {_some(seen) or 'no weights'}; expected torchvision's names "
        f"(conv1.weight, layer1.0.conv1.weight, fc.weight and so on) or one of the namings {others}. A ResNet under "
        "other names can be exported once its tensors are renamed to torchvision's"
    )


def _some(items: list[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
