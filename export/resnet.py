"""One ResNet for every family: a spec says which, and `ResNet(spec)` is it under torchvision's tensor names.

The topology is He et al. 2015 (arXiv:1512.03385) as torchvision writes it: a bottleneck strides on its 3x3 convolution
("v1.5"), a basic block on its first. Every stage but the first halves the picture. A 7x7 stem strides by 2 and is
followed by a max-pool; a 3x3 stem, for 32x32 pictures, does neither. Tensors say nothing about strides, so a network
that strides elsewhere can't be told from its tensors.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Block = Literal["basic", "bottleneck"]
Stem = Literal["7x7-maxpool", "3x3"]
Shortcut = Literal["projection", "option-a"]
ConvRole = Literal["stem", "conv1", "conv2", "conv3", "shortcut"]

# (block, blocks per stage, groups, width of one group in the first stage)
_TORCHVISION_NAMES: dict[tuple[Block, tuple[int, ...], int, int], str] = {
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


@dataclass(frozen=True)
class ResNetSpec:
    """Which ResNet: all that `ResNet` needs to build it. Tuples have an entry for each stage."""

    block: Block
    stem: Stem
    stem_width: int
    blocks_per_stage: tuple[int, ...]
    inner_widths: tuple[int, ...]
    """Channels between a block's convolutions."""
    out_widths: tuple[int, ...]
    """Channels that a block gives out."""
    projected_stages: tuple[bool, ...]
    """Whether the stage's first block has a 1x1 convolution with BatchNorm as its shortcut. A later stage without one
    has the parameter-free option A."""
    classes: int
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt)."""
    in_channels: int = 3
    biased_convs: frozenset[ConvRole] = frozenset()
    """Which convolutions have a bias of their own besides BatchNorm's."""

    @property
    def in_widths(self) -> tuple[int, ...]:
        """Channels that each stage takes in."""
        return (self.stem_width, *self.out_widths[:-1])

    @property
    def width_per_group(self) -> int:
        """Channels of one group in the first stage, as ResNeXt's `32x4d` has them."""
        return self.inner_widths[0] // self.groups

    @property
    def shortcut(self) -> Shortcut:
        """How a block adds its input where the number of channels changes."""
        return "projection" if all(self.projected_stages[1:]) else "option-a"

    @property
    def default_input_size(self) -> int:
        """Side in pixels of the pictures that such a network is usually trained on."""
        return 32 if self.stem == "3x3" else 224

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, as He et al. count them."""
        return (2 if self.block == "basic" else 3) * sum(self.blocks_per_stage) + 2

    @property
    def name(self) -> str:
        """`torchvision resnet18`, `CIFAR ResNet-20 (option A)`; what is unusual stands in brackets."""
        remarks = _remarks(self)
        if self.stem == "7x7-maxpool" and not remarks and (known := _TORCHVISION_NAMES.get(_key(self))):
            return f"torchvision {known}"
        family = "CIFAR ResNet" if self.stem == "3x3" else "ResNet"
        if (self.block, self.blocks_per_stage) in _PLAIN_DEPTHS or _is_6n_plus_2(self):
            base = f"{family}-{self.depth}"
        else:
            base = f"{family} of {self.block} blocks {'-'.join(map(str, self.blocks_per_stage))}"
        if self.block == "bottleneck" and _key(self)[2:] != (1, 64):
            remarks.insert(0, f"{self.groups}x{self.width_per_group}d")
        if _is_6n_plus_2(self):
            remarks.insert(0, "option A" if self.shortcut == "option-a" else "option B")
        return f"{base} ({', '.join(remarks)})" if remarks else base


class ResNet(nn.Module):
    """The network of `spec`: float32 NCHW, already normalised, in; logits (rows, classes), float32, out.

    Any batch and any picture size of at least one pixel per stride; no control flow depends on the data. Every
    BatchNorm takes the output of one convolution and nothing else does: `conv_bn_pairs` lists them.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        kernel, stride, padding = (3, 1, 1) if spec.stem == "3x3" else (7, 2, 3)
        self.conv1 = nn.Conv2d(
            spec.in_channels, spec.stem_width, kernel, stride, padding, bias="stem" in spec.biased_convs
        )
        self.bn1 = nn.BatchNorm2d(spec.stem_width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "7x7-maxpool" else nn.Identity()
        for stage, blocks in enumerate(spec.blocks_per_stage):
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(*(ResidualBlock(spec, stage, block) for block in range(blocks)))
            )
        self.fc = nn.Linear(spec.out_widths[-1], spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (rows, classes) of `images` (rows, channels, height, width)."""
        features = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for stage in range(1, len(self.spec.blocks_per_stage) + 1):
            features = self.get_submodule(f"layer{stage}")(features)
        # adaptive_avg_pool2d(1) is the same number, but torch.export decomposes it into an as_strided that exports to a
        # Gather over indices computed from the batch size; the mean exports to one ReduceMean.
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (basic), or 1x1, grouped 3x3, 1x1 (bottleneck), beside a shortcut."""

    def __init__(self, spec: ResNetSpec, stage: int, block: int) -> None:
        super().__init__()
        in_width = spec.in_widths[stage] if block == 0 else spec.out_widths[stage]
        inner, out = spec.inner_widths[stage], spec.out_widths[stage]
        stride = 2 if stage > 0 and block == 0 else 1
        biased = spec.biased_convs
        if spec.block == "basic":
            self.conv1 = nn.Conv2d(in_width, inner, 3, stride, 1, bias="conv1" in biased)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, out, 3, 1, 1, bias="conv2" in biased)
            self.bn2 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(in_width, inner, 1, bias="conv1" in biased)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=spec.groups, bias="conv2" in biased)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, out, 1, bias="conv3" in biased)
            self.bn3 = nn.BatchNorm2d(out)
        self.bottleneck = spec.block == "bottleneck"
        self.downsample: nn.Module
        if block == 0 and spec.projected_stages[stage]:
            projection = nn.Conv2d(in_width, out, 1, stride, bias="shortcut" in biased)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out))
        elif stride == 2:
            self.downsample = PaddedShortcut(out - in_width)
        elif in_width == out:
            self.downsample = nn.Identity()
        else:
            raise ValueError(f"stage 1 takes {in_width} channels and gives {out}, so it needs a projection")

    def forward(self, features: Tensor) -> Tensor:
        """Feature map, NCHW, of the same rows."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.bottleneck:
            residual = self.bn3(self.conv3(F.relu(residual)))
        return F.relu(residual + self.downsample(features))


class PaddedShortcut(nn.Module):
    """He et al.'s option A: every second pixel, with zero channels added, half of them before and half after.

    The paper leaves open where the zeros go; half and half is what github.com/akamaster/pytorch_resnet_cifar10 does.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, features: Tensor) -> Tensor:
        """Feature map of half the side and more channels."""
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def conv_bn_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) submodule names of every such pair in a `ResNet`, in the order of its layers.

    Raises:
        ValueError: `module` holds a BatchNorm that is in no pair, so it isn't a `ResNet`.
    """
    pairs = [("conv1", "bn1")]
    for name, child in module.named_modules():
        if isinstance(child, ResidualBlock):
            pairs += [(f"{name}.conv{k}", f"{name}.bn{k}") for k in range(1, 4 if child.bottleneck else 3)]
            if isinstance(child.downsample, nn.Sequential):
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
    norms = {name for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)}
    if lonely := norms - {bn for _, bn in pairs}:
        raise ValueError(f"{', '.join(sorted(lonely))} follow no convolution that is known; expected a `ResNet`")
    return pairs


def _key(spec: ResNetSpec) -> tuple[Block, tuple[int, ...], int, int]:
    """Key into torchvision's names; the group width is scaled as though the first stage gave out its usual channels."""
    usual_ratio = 64 * _expansion(spec) / spec.out_widths[0]
    return spec.block, spec.blocks_per_stage, spec.groups, round(spec.width_per_group * usual_ratio)


def _remarks(spec: ResNetSpec) -> list[str]:
    """What sets `spec` apart from the usual network of its depth and group width."""
    stages = range(len(spec.blocks_per_stage))
    first = 16 if _is_6n_plus_2(spec) else 64
    usual_out = tuple(first * _expansion(spec) * 2**stage for stage in stages)
    remarks = []
    if (spec.stem_width, spec.out_widths) != (first, usual_out):
        remarks.append(f"widths {'-'.join(map(str, (spec.stem_width, *spec.out_widths)))}")
    doubling = tuple(spec.inner_widths[0] * 2**stage for stage in stages)
    if spec.inner_widths != (spec.out_widths if spec.block == "basic" else doubling):
        remarks.append(f"inner widths {'-'.join(map(str, spec.inner_widths))}")
    if spec.projected_stages[0] and spec.stem_width == spec.out_widths[0]:
        remarks.append("projection in stage 1")
    if spec.biased_convs:
        remarks.append("convolution biases")
    if spec.in_channels != 3:
        remarks.append(f"{spec.in_channels} input channel{'s' if spec.in_channels > 1 else ''}")
    return remarks


def _expansion(spec: ResNetSpec) -> int:
    return 1 if spec.block == "basic" else 4


def _is_6n_plus_2(spec: ResNetSpec) -> bool:
    """Whether the blocks are those of He et al.'s networks for CIFAR-10 (section 4.2): 20, 32, 44, 56, 110 layers."""
    blocks = spec.blocks_per_stage
    return spec.block == "basic" and spec.stem == "3x3" and len(blocks) == 3 and len(set(blocks)) == 1
