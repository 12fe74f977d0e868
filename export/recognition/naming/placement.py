"""One naming scheme applied to one checkpoint: the part of our networks that each of its names stands for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fuseline.export.recognition.naming.foreign_networks import FACTORY
from fuseline.export.recognition.naming.naming_schemes import NamingScheme
from fuseline.serve.errors import ArchitectureError

_NUMBER = r"(0|[1-9]\d{0,3})"
DEEP_STEM = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
"""Our names of the modules of a stem of three convolutions, each with its BatchNorm."""
_PLAIN_LAYER = re.compile(rf"features\.{_NUMBER}$")


@dataclass(frozen=True, eq=False)
class Placement:
    """The modules of a checkpoint under one scheme."""

    scheme: NamingScheme
    blocks: frozenset[tuple[int, int]]
    """(stage, block), both from 0, of each block of the checkpoint."""
    modules: Mapping[str, str]
    """Our networks' module names to the checkpoint's."""
    deep: bool = False
    """Whether the names tell a stem of three convolutions."""
    pooled: bool = False
    """Whether the names tell average pools in the shortcuts."""

    def in_checkpoint(self, ours: str) -> str:
        """Return the checkpoint's name of our tensor or module."""
        if ours in self.modules:
            return self.modules[ours]
        module, _, leaf = ours.rpartition(".")
        return f"{self.modules.get(module, module)}.{leaf}"

    def placed(self, tensor_names: Iterable[str]) -> dict[str, str]:
        """Return our tensor name -> the checkpoint's, for those of `tensor_names` that the scheme knows."""
        inverse = {theirs: ours for ours, theirs in self.modules.items()}
        split = ((name, *name.rpartition(".")) for name in tensor_names)
        return {f"{inverse[module]}.{leaf}": name for name, module, _, leaf in split if module in inverse}

    def blocks_per_stage(self) -> tuple[int, ...]:
        """Return the number of blocks of each stage.

        Raises:
            ArchitectureError: there is no block at all, or a stage or a block is missing in between.
        """
        if not self.blocks:
            raise ArchitectureError(f"no tensor's name begins with {self.scheme.block}, so there are no blocks")
        counts = Counter(stage for stage, _ in self.blocks)
        wanted = {(stage, block) for stage in range(max(counts) + 1) for block in range(counts[stage] or 1)}
        if gaps := wanted - self.blocks:
            stage, block = min(gaps)
            gap = self.scheme.block.format(stage=stage + self.scheme.first_stage, block=block)
            raise ArchitectureError(
                f"this is not all of a ResNet ({self.scheme.name} naming): no tensor's name begins with {gap}, but "
                f"later stages or blocks are there; expected stages from {self.scheme.first_stage} and blocks from 0 "
                "on, without a gap. If the file was filtered or cut, save model.state_dict() whole; if the network is "
                f"so, {FACTORY}"
            )
        return tuple(counts[stage] for stage in range(len(counts)))


def place(scheme: NamingScheme, tensor_names: Iterable[str]) -> Placement:
    """Apply `scheme` to the names of a checkpoint; the caller checks how many of them have a place."""
    layers = {name.rpartition(".")[0] for name in tensor_names}
    classifier = _classifier(scheme, layers)
    if scheme.family == "plain":
        plain = {layer: layer for layer in layers if _PLAIN_LAYER.match(layer)}
        return Placement(scheme, frozenset(), plain | {"fc": classifier})
    pattern = re.compile(re.escape(scheme.block).replace(r"\{stage\}", _NUMBER).replace(r"\{block\}", _NUMBER) + r"\.")
    matches = [match for layer in layers if (match := pattern.match(f"{layer}."))]
    numbers = ((int(match[1]) - scheme.first_stage, int(match[2])) for match in matches)
    blocks = frozenset((stage, block) for stage, block in numbers if stage >= 0)

    def has(part: str) -> bool:
        return any(layer.endswith(f".{part}") for layer in layers if pattern.match(layer))

    deep = bool(scheme.deep_stem) and scheme.deep_stem[2] in layers
    pooled = (deep and scheme.deep_stem_pools) or (
        bool(scheme.pooled_shortcut)
        and has(scheme.pooled_shortcut[0])
        # Where BatchNorms were fused before, only the convolution tells, by coming second.
        and (has(scheme.pooled_shortcut[-1]) or not has(scheme.shortcut[0]))
    )
    modules = module_names(scheme, blocks, deep=deep, pooled=pooled) | {"fc": classifier}
    return Placement(scheme, blocks, modules, deep, pooled)


def module_names(
    scheme: NamingScheme, blocks: Iterable[tuple[int, int]], *, deep: bool, pooled: bool
) -> dict[str, str]:
    """Return our module name -> name in `scheme`, for a network with these (stage, block), both from 0."""
    ours_of_stem = DEEP_STEM if deep else ("conv1", "bn1")
    names = dict(zip(ours_of_stem, scheme.deep_stem if deep else scheme.stem, strict=False))
    if scheme.final_norm is not None:
        names["bn"] = scheme.final_norm
    names["fc"] = scheme.classifier
    for stage, block in sorted(blocks):
        ours = f"layer{stage + 1}.{block}"
        theirs = scheme.block.format(stage=stage + scheme.first_stage, block=block)
        for k, (conv, bn) in enumerate(scheme.convs, start=1):
            names |= {f"{ours}.conv{k}": f"{theirs}.{conv}", f"{ours}.bn{k}": f"{theirs}.{bn}"}
        shortcut = scheme.pooled_shortcut if pooled and scheme.pooled_shortcut else scheme.shortcut
        if scheme.family == "pre-activation":
            names[f"{ours}.downsample"] = f"{theirs}.{shortcut[0]}"
        else:
            names |= {f"{ours}.downsample.{k}": f"{theirs}.{part}" for k, part in enumerate(shortcut)}
        for k, part in enumerate(scheme.squeeze, start=1):
            names[f"{ours}.se.fc{k}"] = f"{theirs}.{part}"
    return names


def _classifier(scheme: NamingScheme, layers: Iterable[str]) -> str:
    """Return the classifier, also where it shares a Sequential with dropout: `fc = Sequential(Dropout, Linear)`."""
    if scheme.classifier in layers:
        return scheme.classifier
    within = [layer for layer in layers if re.fullmatch(rf"{re.escape(scheme.classifier)}\.\d", layer)]
    return within[0] if len(within) == 1 else scheme.classifier
