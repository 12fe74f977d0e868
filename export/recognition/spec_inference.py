"""Inference of a ResNet's spec from the shapes of its tensors, under our names.

Each number is the one that most tensors have, so that a misshapen tensor is found rather than believed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fuseline.export.recognition.naming.foreign_networks import FACTORY
from fuseline.export.recognition.naming.placement import Placement
from fuseline.export.recognition.networks.resnet_spec import ConvRole, PreActResNetSpec, ResNetSpec
from fuseline.serve.errors import ArchitectureError

Shape = tuple[int, ...]

_ALL_ROLES: frozenset[ConvRole] = frozenset({"stem", "conv1", "conv2", "conv3", "shortcut"})
_BN_LEAVES = ("weight", "bias", "running_mean", "running_var")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}


def infer_spec(shapes: Mapping[str, Shape], placement: Placement, config: Mapping[str, Any]) -> ResNetSpec:
    """Return the spec that most of `shapes` (our tensor names to shapes) agree on; the rest may not fit it.

    Args:
        config: a Hugging Face config.json; strides and activation are taken from it for networks of that naming.

    Raises:
        ArchitectureError: too few tensors are there to tell, a stage or block is missing, or the config has an unknown
            activation.
    """
    return _Inference(shapes, placement).spec(config)


class _Inference:
    def __init__(self, shapes: Mapping[str, Shape], placement: Placement) -> None:
        self.shapes = shapes
        self.placement = placement
        self.scheme = placement.scheme
        self.preact = self.scheme.family == "pre-activation"
        self.blocks_per_stage = placement.blocks_per_stage()
        self.blocks = [f"layer{stage + 1}.{block}" for stage, block in sorted(placement.blocks)]
        thirds = sum(f"{block}.conv3.weight" in shapes or f"{block}.bn3.weight" in shapes for block in self.blocks)
        self.bottleneck = 2 * thirds > len(self.blocks)
        self._check_third_norms()

    def _check_third_norms(self) -> None:
        third = next((block for block in self.blocks if f"{block}.bn3.weight" in self.shapes), None)
        has_convs = any(f"{block}.conv3.weight" in self.shapes for block in self.blocks)
        if self.bottleneck and third and not has_convs and self.size(f"{third}.conv1.weight", 2) != 1:
            raise ArchitectureError(
                "these are basic blocks, two 3x3 convolutions, with a third BatchNorm at "
                f"{self.placement.in_checkpoint(f'{third}.bn3')}: it may follow the shortcut or the sum, which no "
                f"tensor tells; {FACTORY}"
            )

    def spec(self, config: Mapping[str, Any]) -> ResNetSpec:
        last = 3 if self.bottleneck else 2
        inner, out = self.widths(1), self.widths(last)
        deep = self.placement.deep
        kernel = self.size("conv1.weight", 2) or (3 if len(self.blocks_per_stage) == 3 else 7)
        stem_width = self.width(
            [("conv1.6" if deep else "conv1", None if self.preact else "bn1")],
            "the width of the first convolution",
        )
        facts: dict[str, Any] = {
            "block": "bottleneck" if self.bottleneck else "basic",
            "stem": "deep-maxpool" if deep else "3x3" if kernel == 3 else "7x7-maxpool",
            "stem_width": stem_width,
            "blocks_per_stage": self.blocks_per_stage,
            "inner_widths": inner,
            "out_widths": out,
            "projected_stages": self.projected(stem_width, out, small=kernel == 3 and not deep),
            "classes": most_common(
                (self.size(f"fc.{leaf}", 0) for leaf in ("weight", "bias")),
                f"the number of classes, the rows of {self.placement.in_checkpoint('fc.weight')},",
            ),
            "groups": self.groups(inner) if self.bottleneck else 1,
            "in_channels": self.size("conv1.0.weight" if deep else "conv1.weight", 1) or 3,
            "biased_convs": frozenset(
                role
                for name in self.shapes
                if name.endswith(".bias") and (role := _role(name.removesuffix(".bias"), deep=deep))
            ),
            "bare_convs": self.bare_convs(),
            "projection_kernels": self.projection_kernels(),
            "stem_inner_widths": tuple(
                self.width([(f"conv1.{k}", f"conv1.{k + 1}")], "the width of the deep stem") for k in (0, 3) if deep
            ),
            "pooled_shortcuts": self.placement.pooled,
            "squeeze_widths": self.squeeze_widths(),
            "strided_conv": self.scheme.strided_conv,
        }
        if self.scheme.name.startswith("huggingface"):
            facts |= _from_config(config, bottleneck=self.bottleneck)
            if facts["first_stage_stride"] == 2 and not facts["projected_stages"][0]:
                raise ArchitectureError(
                    "config.json has downsample_in_first_stage true, but the first stage has no projection that could "
                    "halve its input; is it the config.json of these weights?"
                )
        if not self.preact:
            return ResNetSpec(**facts)
        projection_input = self.scheme.projection_input if any(facts["projected_stages"]) else "activated"
        return PreActResNetSpec(
            **facts, projection_input=projection_input, final_norm=self.scheme.final_norm is not None
        )

    def widths(self, conv: int) -> tuple[int, ...]:
        """Return the number of output channels of each stage's convolution `conv`."""
        bn = conv + 1 if self.preact else conv
        within = not self.preact or bn <= (3 if self.bottleneck else 2)
        return tuple(
            self.width(
                [
                    (f"layer{stage}.{block}.conv{conv}", f"layer{stage}.{block}.bn{bn}" if within else None)
                    for block in range(count)
                ],
                f"the width of stage {stage}'s convolution {conv}",
            )
            for stage, count in enumerate(self.blocks_per_stage, start=1)
        )

    def width(self, modules: Iterable[tuple[str, str | None]], what: str) -> int:
        """Return the number of output channels of these convolutions, each with the BatchNorm that takes its output."""
        pairs = list(modules)
        seen = [self.size(f"{conv}.weight", 0) for conv, _ in pairs]
        seen += [self.size(f"{bn}.{leaf}", 0) for _, bn in pairs if bn is not None for leaf in _BN_LEAVES]
        return most_common(seen, what)

    def projected(self, stem_width: int, out: tuple[int, ...], *, small: bool) -> tuple[bool, ...]:
        stages = range(1, len(self.blocks_per_stage) + 1)
        found = tuple(any(name.startswith(f"layer{stage}.0.downsample.") for name in self.shapes) for stage in stages)
        # Shortcuts without parameters are assumed only where He et al. have them; elsewhere tensors must be missing.
        option_a = (
            not self.preact
            and not any(found)
            and not self.bottleneck
            and small
            and len(found) == 3
            and out == tuple(stem_width * 2**stage for stage in range(3))
        )
        if option_a:
            return found
        return tuple(there or stage > 0 or stem_width != out[0] for stage, there in enumerate(found))

    def bare_convs(self) -> frozenset[ConvRole]:
        """Return the convolutions without a BatchNorm: all, if each has a bias instead, or the projections, or none."""
        if self.preact:
            return frozenset()
        if not any(name.endswith(f".{leaf}") for name in self.shapes for leaf in ("running_mean", "running_var")):
            biased = {name.removesuffix("bias") for name in self.shapes if name.endswith(".bias")}
            normed = any(re.search(r"(^|\.)(bn\d|downsample\.1|conv1\.[14])\.", name) for name in self.shapes)
            all_biased = all(name.removesuffix("weight") in biased for name in self.shapes if name.endswith(".weight"))
            return _ALL_ROLES if all_biased and not normed else frozenset()
        projected = any(".downsample.0." in name for name in self.shapes)
        normed = any(".downsample.1." in name for name in self.shapes)
        return frozenset({"shortcut"}) if projected and not normed else frozenset()

    def projection_kernels(self) -> tuple[int, ...]:
        conv = "downsample" if self.preact else "downsample.0"
        found = tuple(
            3 if self.size(f"layer{stage}.0.{conv}.weight", 2) == 3 else 1
            for stage in range(1, len(self.blocks_per_stage) + 1)
        )
        return found if any(kernel > 1 for kernel in found) else ()

    def groups(self, inner_widths: Iterable[int]) -> int:
        """Return the number of groups: a grouped convolution's weight has the input channels of one group only."""
        seen: Counter[int] = Counter()
        for block in self.blocks:
            whole, part = self.size(f"{block}.conv1.weight", 0), self.size(f"{block}.conv2.weight", 1)
            if whole and part and whole % part == 0:
                seen[whole // part] += 1
        groups = seen.most_common(1)[0][0] if seen else 1
        return groups if all(width % groups == 0 for width in inner_widths) else 1

    def squeeze_widths(self) -> tuple[int, ...]:
        if not any(".se.fc" in name for name in self.shapes):
            return ()
        places = (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))
        return tuple(
            most_common(
                (self.size(f"layer{stage}.{b}.se.{leaf}", axis) for b in range(count) for leaf, axis in places),
                f"the width of stage {stage}'s squeeze-and-excitation",
            )
            for stage, count in enumerate(self.blocks_per_stage, start=1)
        )

    def size(self, name: str, axis: int) -> int | None:
        shape = self.shapes.get(name, ())
        return shape[axis] if axis < len(shape) and shape[axis] > 0 else None


def most_common(values: Iterable[int | None], what: str) -> int:
    """Return the commonest of `values`, None left out.

    Raises:
        ArchitectureError: all are None; the message begins with `what`.
    """
    counts = Counter(value for value in values if value is not None)
    if not counts:
        raise ArchitectureError(f"{what} can't be told: no tensor says it")
    return counts.most_common(1)[0][0]


def _from_config(config: Mapping[str, Any], *, bottleneck: bool) -> dict[str, Any]:
    activation = config.get("hidden_act", "relu")
    if activation not in _ACTIVATIONS:
        raise ArchitectureError(
            f"config.json has hidden_act {activation!r}; expected one of {', '.join(_ACTIVATIONS)}. To "
            f"export it, {FACTORY}"
        )
    return {
        "activation": _ACTIVATIONS[activation],
        "strided_conv": 1 if bottleneck and config.get("downsample_in_bottleneck") is True else None,
        "first_stage_stride": 2 if config.get("downsample_in_first_stage") is True else 1,
    }


def _role(conv: str, *, deep: bool) -> ConvRole | None:
    if conv in (("conv1.0", "conv1.3", "conv1.6") if deep else ("conv1",)):
        return "stem"
    if not conv.startswith("layer"):
        return None
    last: dict[str, ConvRole] = {
        ".conv1": "conv1",
        ".conv2": "conv2",
        ".conv3": "conv3",
        ".downsample.0": "shortcut",
        ".downsample": "shortcut",
    }
    return next((role for ending, role in last.items() if conv.endswith(ending)), None)
