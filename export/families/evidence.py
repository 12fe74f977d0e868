"""Why a checkpoint is taken for what it is, and what nothing in it tells: sentences for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from export.families.naming_schemes import NamingScheme
from export.families.placement import Placement
from export.families.plain_network import PlainSpec
from export.families.resnet_spec import PreActResNetSpec, ResNetSpec

_BLOCKS = {
    "basic": "basic blocks (two 3x3 convolutions)",
    "bottleneck": "bottleneck blocks (1x1, 3x3 and 1x1 convolutions)",
}


def evidence_of(spec: ResNetSpec | PlainSpec, placement: Placement, placed: int) -> Iterator[str]:
    """What in the names and shapes of the `placed` tensors tells each part of `spec`."""
    yield f"names of {placement.scheme.description} ({placed} of {placed} tensors placed)"
    if isinstance(spec, PlainSpec):
        yield f"{len(spec.widths)} convolutions in a row, each with a BatchNorm, and no shortcuts"
        if spec.maxpool:
            yield "a place without tensors behind the 7x7 first convolution: a max-pool"
        return
    yield f"{_BLOCKS[spec.block]}, {_dashed(spec.blocks_per_stage)}"
    yield _stem_evidence(spec)
    if spec.groups > 1:
        yield f"3x3 convolutions of {spec.groups} groups: their weights have 1/{spec.groups} of the input channels"
    if isinstance(spec, PreActResNetSpec):
        ending = "and one after the last block" if spec.final_norm else "and none after the last block"
        yield f"no BatchNorm after the stem or a projection, {ending}: pre-activation (He et al. 2016)"
    if spec.squeeze_widths:
        yield f"two 1x1 convolutions with {_dashed(spec.squeeze_widths)} channels in each block: squeeze-and-excitation"
    if spec.pooled_shortcuts and placement.scheme.pooled_shortcut:
        yield "the projections come second in their shortcuts: an average pool stands before them"
    if not isinstance(spec, PreActResNetSpec) and spec.shortcut == "option-a":
        yield "no projections where the widths double: parameter-free shortcuts (option A)"


def unseen_of(
    spec: ResNetSpec | PlainSpec, scheme: NamingScheme, classifier: str, config: Mapping[str, Any]
) -> Iterator[str]:
    """What no tensor's shape tells, where networks in use differ, and what it is taken to be."""
    if classifier != scheme.classifier:
        yield (
            f"the classifier stands in a Sequential, as {classifier}; what comes before it there and has no tensors is "
            "taken to be dropout, which does nothing at inference"
        )
    if isinstance(spec, PlainSpec):
        yield "tensors don't tell strides: the plain network is taken to stride by 2 where its width doubles"
        if spec.kernel == 3:
            yield _small_stem("plain networks for CIFAR")
        if spec.maxpool:
            yield "the layer without tensors behind the first convolution is taken to be a 3x3 max-pool of stride 2"
        return
    if spec.stem == "3x3":
        yield _small_stem("CIFAR ResNets")
    if isinstance(spec, PreActResNetSpec):
        yield from _unseen_of_preact(spec, scheme)
    elif scheme.name.startswith("huggingface"):
        if not config:
            yield (
                "no config.json came: the activations are taken to be ReLU, the first stage not to stride, and the "
                "strides to be on 3x3 convolutions, as transformers has them unless told otherwise"
            )
    elif spec.block == "bottleneck":
        yield "tensors don't tell strides: bottlenecks are taken to stride on their 3x3 convolution, as torchvision's"
    if not isinstance(spec, PreActResNetSpec) and spec.shortcut == "option-a":
        yield (
            "the parameter-free shortcuts are taken to skip every second pixel, without averaging, and to add half of "
            "their zero channels before and half after"
        )
    if spec.stem == "deep-maxpool" or spec.squeeze_widths or spec.pooled_shortcuts:
        yield (
            "anti-aliasing pools (timm's resnetaa* and resnetblur*) and activations leave no tensors: no such pools, "
            "and ReLU, are assumed"
        )


def unseen_without_modules(scheme: NamingScheme) -> str:
    """What a bare state dict never tells, and a pickled module would."""
    return (
        "tensors tell no strides, pools, paddings, activations and no BatchNorm eps: all are taken as in "
        f"{scheme.description}, with eps 1e-5; a network of these names that was built otherwise needs --factory "
        "package.module:function"
    )


def _unseen_of_preact(spec: PreActResNetSpec, scheme: NamingScheme) -> Iterator[str]:
    if any(spec.projected_stages):
        raw = "the block's raw input" if spec.projection_input == "raw" else "the activated input"
        yield f"projections are taken to take {raw}, as in {scheme.description}"
    number = spec.strided_conv or (1 if spec.block == "basic" else 2)
    yield f"tensors don't tell strides: blocks are taken to stride on convolution {number}, as in {scheme.description}"
    if spec.pooled_shortcuts:
        yield "average pools are taken to come before the projections, as in timm's networks with a deep stem"


def _small_stem(whose: str) -> str:
    return (
        "tensors don't tell strides: the 3x3 first convolution is taken to have stride 1 and no max-pool after it, "
        f"as in {whose}"
    )


def _stem_evidence(spec: ResNetSpec) -> str:
    if spec.stem == "3x3":
        return "3x3 first convolution: for small pictures, no stride and no max-pool"
    if spec.stem == "7x7-maxpool":
        return "7x7 first convolution: stride 2 and a max-pool follow"
    widths = _dashed((*spec.stem_inner_widths, spec.stem_width))
    return f"three 3x3 convolutions first ({widths}): stride 2 and a max-pool follow"


def _dashed(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))
