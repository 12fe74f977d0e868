"""The evidence for a recognised network: sentences for people."""

from collections.abc import Iterator

from fuseline.export.recognition.naming.placement import Placement
from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec, ResNetSpec

_BLOCKS = {
    "basic": "basic blocks (two 3x3 convolutions)",
    "bottleneck": "bottleneck blocks (1x1, 3x3 and 1x1 convolutions)",
}


def evidence_of(spec: ResNetSpec | PlainSpec, placement: Placement, placed: int) -> Iterator[str]:
    """Yield sentences: what in the names and shapes of the `placed` tensors tells each part of `spec`."""
    yield f"names of {placement.scheme.description} ({placed} of {placed} tensors placed)"
    if isinstance(spec, PlainSpec):
        yield f"{len(spec.widths)} convolutions in a row, each with a BatchNorm, and no shortcuts"
        if spec.maxpool:
            yield "a place without tensors behind the 7x7 first convolution: a max-pool"
        return
    yield f"{_BLOCKS[spec.block]}, {_dashed(spec.blocks_per_stage)}"
    yield _stem_evidence(spec)
    if any(kernel > 1 for kernel in spec.projection_kernels):
        yield "3x3 convolutions in the shortcuts: projections that stride with a padding of 1"
    if "stem" in spec.bare_convs:
        yield "no BatchNorm, but a bias in each convolution, as where they were fused before: none is left to fold"
    elif spec.bare_convs:
        yield "no BatchNorm behind the convolutions in the shortcuts"
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
        kind = "parameter-free shortcuts (option A)" if spec.adds_inputs else "a plain network, as a flag says"
        yield f"no projections where the widths double: {kind}"


def _stem_evidence(spec: ResNetSpec) -> str:
    if spec.stem == "3x3":
        return "3x3 first convolution, as networks for small pictures have"
    if spec.stem == "7x7-maxpool":
        return "7x7 first convolution"
    return f"three 3x3 convolutions first ({_dashed((*spec.stem_inner_widths, spec.stem_width))})"


def _dashed(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))
