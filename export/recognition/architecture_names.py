"""The names that people have for a network: `torchvision resnet18`, `timm seresnext26d_32x4d`, `WRN-28-10`."""

from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec, ResNetSpec
from fuseline.export.recognition.recognised import Spec

# (block, blocks per stage, groups, width of one group in the first stage)
_TORCHVISION_NAMES: dict[tuple[str, tuple[int, ...], int, int], str] = {
    ("basic", (2, 2, 2, 2), 1, 64): "resnet18",
    ("basic", (3, 4, 6, 3), 1, 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 1, 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 1, 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 1, 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 32, 4): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 32, 8): "resnext101_32x8d",
    ("bottleneck", (3, 4, 23, 3), 64, 4): "resnext101_64x4d",
    ("bottleneck", (3, 4, 6, 3), 1, 128): "wide_resnet50_2",
    ("bottleneck", (3, 4, 23, 3), 1, 128): "wide_resnet101_2",
}
_PLAIN_DEPTHS = {(block, blocks) for block, blocks, groups, width in _TORCHVISION_NAMES if (groups, width) == (1, 64)}
# Depths that timm has and torchvision hasn't.
_TIMM_DEPTHS = _PLAIN_DEPTHS | {
    ("basic", (1, 1, 1, 1)),
    ("bottleneck", (1, 1, 1, 1)),
    ("bottleneck", (2, 2, 2, 2)),
    ("bottleneck", (3, 24, 36, 3)),
    ("bottleneck", (3, 30, 48, 8)),
}
# (widths of a deep stem, average pools before the projections) to the letter that timm and MXNet's Gluon give it
_STEM_LETTERS = {
    ((64,), False): "",
    ((32, 32, 64), False): "c",
    ((32, 32, 64), True): "d",
    ((64, 64, 128), False): "s",
    ((64, 64, 128), True): "e",
    ((24, 32, 64), True): "t",
}


def name_of(spec: Spec) -> str:
    """Return the network's name, such as `CIFAR ResNet-20 (option A)`; what is unusual stands in brackets."""
    if isinstance(spec, PlainSpec):
        return _plain_name(spec)
    return _preact_name(spec) if isinstance(spec, PreActResNetSpec) else _resnet_name(spec)


def _plain_name(spec: PlainSpec) -> str:
    remarks = [f"widths {spec.widths[0]} to {spec.widths[-1]}"]
    if spec.biased:
        remarks.append("convolution biases")
    return f"plain-{spec.depth} ({', '.join([*remarks, *_input_remark(spec)])})"


def _resnet_name(spec: ResNetSpec) -> str:
    remarks = _remarks(spec)
    if spec.stem != "3x3" and not remarks and (name := _torchvision_name(spec) or _timm_name(spec)):
        return name
    family = "CIFAR ResNet" if spec.stem == "3x3" else "ResNet"
    if (spec.block, spec.blocks_per_stage) in _TIMM_DEPTHS or _is_6n_plus_2(spec):
        base = f"{family}-{spec.depth}"
    else:
        base = f"{family} of {spec.block} blocks {_dashed(spec.blocks_per_stage)}"
    remarks = [*_kinship(spec), *remarks]
    if _is_6n_plus_2(spec):
        shortcuts = "option B" if spec.shortcut == "projection" else "option A" if spec.adds_inputs else "no shortcuts"
        remarks.insert(0, shortcuts)
    return f"{base} ({', '.join(remarks)})" if remarks else base


def _preact_name(spec: PreActResNetSpec) -> str:
    timm = _timm_v2_name(spec)
    if timm and not _remarks(spec):
        return timm
    if _is_6n_plus_2(spec) and (factor := _widening(spec)):
        # Zagoruyko and Komodakis also count the projections, hence 6n + 4.
        base = f"WRN-{spec.depth + 2}-{factor}"
        remarks = [remark for remark in _remarks(spec) if not remark.startswith(("widths", "projection"))]
    else:
        known = (spec.block, spec.blocks_per_stage) in _TIMM_DEPTHS or _is_6n_plus_2(spec)
        blocks = f"-{spec.depth}" if known else f" of {spec.block} blocks {_dashed(spec.blocks_per_stage)}"
        base, remarks = f"PreActResNet{blocks}", [*_kinship(spec), *_remarks(spec)]
    return f"{base} ({', '.join(remarks)})" if remarks else base


def _torchvision_name(spec: ResNetSpec) -> str | None:
    known = _TORCHVISION_NAMES.get((spec.block, spec.blocks_per_stage, spec.groups, _usual_group_width(spec)))
    return f"torchvision {known}" if known and _letter(spec) == "" and not spec.squeeze_widths else None


def _timm_name(spec: ResNetSpec) -> str | None:
    """Return a name by timm's convention, seresnext26d_32x4d; timm's list need not have it."""
    letter = _letter(spec)
    if letter is None or (spec.block, spec.blocks_per_stage) not in _TIMM_DEPTHS:
        return None
    squeeze = "se" if spec.squeeze_widths else ""
    if spec.groups > 1:
        return f"timm {squeeze}resnext{spec.depth}{letter}_{spec.groups}x{_usual_group_width(spec)}d"
    return f"timm {squeeze}resnet{spec.depth}{letter}" if _usual_group_width(spec) == 64 else None


def _timm_v2_name(spec: PreActResNetSpec) -> str | None:
    letter = _letter(spec)
    if spec.stem == "3x3" or letter is None or (spec.block, spec.blocks_per_stage) not in _PLAIN_DEPTHS:
        return None
    customary = spec.final_norm and spec.projection_input == "activated" and spec.strided_conv is None
    return f"timm resnetv2_{spec.depth}{letter}" if customary else None


def _letter(spec: ResNetSpec) -> str | None:
    return _STEM_LETTERS.get(((*spec.stem_inner_widths, spec.stem_width), spec.pooled_shortcuts))


def _usual_group_width(spec: ResNetSpec) -> int:
    """Return the width of a group, scaled as if the first stage had its usual number of output channels."""
    return round(spec.width_per_group * 64 * _expansion(spec) / spec.out_widths[0])


def _kinship(spec: ResNetSpec) -> list[str]:
    """Return what makes `spec` a relative of the plain ResNet of its depth."""
    kin = []
    if spec.block == "bottleneck" and (spec.groups, _usual_group_width(spec)) != (1, 64):
        kin.append(f"{spec.groups}x{spec.width_per_group}d")
    if spec.stem == "deep-maxpool":
        kin.append(f"deep stem {_dashed((*spec.stem_inner_widths, spec.stem_width))}")
    if spec.pooled_shortcuts:
        kin.append("average-pool shortcuts")
    if spec.squeeze_widths:
        kin.append("squeeze-and-excitation")
    return kin


def _remarks(spec: ResNetSpec) -> list[str]:
    """Return what sets `spec` apart from the usual network of its depth and group width."""
    stages = range(len(spec.blocks_per_stage))
    first = 16 if _is_6n_plus_2(spec) else 64
    usual_out = tuple(first * _expansion(spec) * 2**stage for stage in stages)
    usual_stem = first if spec.stem != "deep-maxpool" else spec.stem_width
    remarks = []
    if (spec.stem_width, spec.out_widths) != (usual_stem, usual_out):
        remarks.append(f"widths {_dashed((spec.stem_width, *spec.out_widths))}")
    doubling = tuple(spec.inner_widths[0] * 2**stage for stage in stages)
    if spec.inner_widths != (spec.out_widths if spec.block == "basic" else doubling):
        remarks.append(f"inner widths {_dashed(spec.inner_widths)}")
    if spec.projected_stages[0] and spec.stem_width == spec.out_widths[0]:
        remarks.append("projection in stage 1")
    if spec.strided_conv is not None:
        remarks.append(f"strides on convolution {spec.strided_conv}")
    if spec.first_stage_stride != 1:
        remarks.append("stage 1 strides")
    if not spec.adds_inputs:
        remarks += [] if _is_6n_plus_2(spec) else ["no shortcuts"]
    elif spec.shortcut == "option-a" and spec.padded_shortcut != "zeros-around":
        remarks.append(f"shortcuts {spec.padded_shortcut}")
    if spec.stem_stride is not None:
        remarks.append(f"stem strides by {spec.stem_stride}")
    if spec.stem_pool is not None:
        remarks.append(f"stem pool {spec.stem_pool}")
    if spec.eps != 1e-5:
        remarks.append(f"eps {spec.eps:g}")
    if spec.activation != "relu":
        remarks.append(spec.activation.upper().replace("SILU", "SiLU"))
    if any(kernel > 1 for kernel in spec.projection_kernels):
        remarks.append("3x3 projections")
    if "stem" in spec.bare_convs:
        remarks.append("no BatchNorms")
    elif spec.bare_convs:
        remarks.append("projections without BatchNorm")
    if spec.biased_convs - spec.bare_convs:
        remarks.append("convolution biases")
    return [*remarks, *_input_remark(spec)]


def _input_remark(spec: Spec) -> list[str]:
    count = spec.in_channels
    return [] if count == 3 else [f"{count} input channel{'s' if count > 1 else ''}"]


def _widening(spec: ResNetSpec) -> int | None:
    """Return the k of a wide ResNet, whose stages have 16k, 32k and 64k channels after a stem of 16, or None."""
    factor, rest = divmod(spec.out_widths[0], 16)
    wide = spec.stem_width == 16 and not rest and factor > 1
    return factor if wide and spec.out_widths == (16 * factor, 32 * factor, 64 * factor) else None


def _expansion(spec: ResNetSpec) -> int:
    return 1 if spec.block == "basic" else 4


def _is_6n_plus_2(spec: ResNetSpec) -> bool:
    """Whether the blocks are those of He et al.'s networks for CIFAR-10 (section 4.2): 20, 32, 44, 56, 110 layers."""
    blocks = spec.blocks_per_stage
    return spec.block == "basic" and spec.stem == "3x3" and len(blocks) == 3 and len(set(blocks)) == 1


def _dashed(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))
