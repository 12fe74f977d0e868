"""The spec of a ResNet: all that `ResNet` and `PreActResNet` need to build one."""

from dataclasses import dataclass
from typing import Literal

from fuseline.export.recognition.naming.naming_schemes import ProjectionInput

Block = Literal["basic", "bottleneck"]
Stem = Literal["7x7-maxpool", "deep-maxpool", "3x3"]
Shortcut = Literal["projection", "option-a"]
ConvRole = Literal["stem", "conv1", "conv2", "conv3", "shortcut"]
Activation = Literal[
    "relu", "relu6", "leaky-relu", "leaky-relu-0.1", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh"
]
PaddedShortcut = Literal["zeros-around", "zeros-after", "average-zeros-around", "average-zeros-after", "none"]
StemPool = Literal["none", "max3", "max2"]


@dataclass(frozen=True)
class ResNetSpec:
    """A ResNet of He et al. 2015 (arXiv:1512.03385) or a relative. Tuples have an entry for each stage."""

    block: Block
    stem: Stem
    stem_width: int
    """Number of output channels of the stem."""
    blocks_per_stage: tuple[int, ...]
    inner_widths: tuple[int, ...]
    """Number of channels between a block's convolutions."""
    out_widths: tuple[int, ...]
    """Number of output channels of a block."""
    projected_stages: tuple[bool, ...]
    """Whether the stage's first block has a convolution as its shortcut. A later stage without one has the
    parameter-free option A."""
    classes: int
    groups: int = 1
    """Number of groups of a bottleneck's 3x3 convolution (ResNeXt)."""
    in_channels: int = 3
    biased_convs: frozenset[ConvRole] = frozenset()
    """The convolutions that have a bias of their own besides BatchNorm's."""
    bare_convs: frozenset[ConvRole] = frozenset()
    """The convolutions that no BatchNorm follows: `shortcut` alone, or all where BatchNorms were fused before."""
    projection_kernels: tuple[int, ...] = ()
    """Side of the kernel of each stage's projection, 1 or 3; () where all are 1."""
    stem_inner_widths: tuple[int, ...] = ()
    """Number of output channels of the first two of a deep stem's three convolutions."""
    pooled_shortcuts: bool = False
    """Whether an average pool halves the picture before a projection, which then doesn't stride (ResNet-D, He et al.
    2018, arXiv:1812.01187)."""
    squeeze_widths: tuple[int, ...] = ()
    """Number of channels between the two layers of squeeze-and-excitation (arXiv:1709.01507); () where there is
    none."""
    strided_conv: int | None = None
    """Number, from 1, of the convolution in a block that strides; None: the customary one, a basic block's first and a
    bottleneck's second."""
    first_stage_stride: int = 1
    activation: Activation = "relu"
    """The activation of the stem and at the end of each block."""
    inner_activation: Activation = "relu"
    """The activation between a block's convolutions; transformers always has ReLU."""
    padded_shortcut: PaddedShortcut = "zeros-around"
    """How option A's shortcuts are made: whether they skip every second pixel or average 2 x 2, and where the new
    channels' zeros go. With `none` no block adds its input: the plain network of the same paper, whose tensors are the
    same."""
    stem_stride: int | None = None
    """Stride of the first convolution; None: the customary one, 1 for a single 3x3, else 2."""
    stem_pool: StemPool | None = None
    """What follows the stem: nothing, a 3x3 max-pool of stride 2 with padding, or a 2x2 one. None: the customary one,
    nothing after a single 3x3 convolution, else the 3x3 one."""
    eps: float = 1e-5
    """The eps of every BatchNorm."""

    @property
    def in_widths(self) -> tuple[int, ...]:
        """Number of input channels of each stage."""
        return (self.stem_width, *self.out_widths[:-1])

    @property
    def width_per_group(self) -> int:
        """Number of channels of one group in the first stage, such as 4 in ResNeXt's `32x4d`."""
        return self.inner_widths[0] // self.groups

    @property
    def shortcut(self) -> Shortcut:
        """How a block adds its input where the number of channels changes."""
        return "projection" if all(self.projected_stages[1:]) else "option-a"

    @property
    def adds_inputs(self) -> bool:
        """Whether blocks have shortcuts at all."""
        return self.shortcut == "projection" or self.padded_shortcut != "none"

    @property
    def default_input_size(self) -> int:
        """Side in pixels of the pictures that such a network is usually trained on."""
        return 32 if self.stem == "3x3" else 224

    @property
    def stem_strides_by(self) -> int:
        """Stride of the first convolution."""
        return self.stem_stride or (1 if self.stem == "3x3" else 2)

    @property
    def pool_after_stem(self) -> StemPool:
        """What follows the stem."""
        return self.stem_pool or ("none" if self.stem == "3x3" else "max3")

    @property
    def striding_conv(self) -> int:
        """Number, from 1, of the convolution in a block that strides."""
        return self.strided_conv or (1 if self.block == "basic" else 2)

    @property
    def convs_per_block(self) -> int:
        """Number of convolutions on a block's residual branch."""
        return 2 if self.block == "basic" else 3

    @property
    def depth(self) -> int:
        """Number of layers with weights on the longest path, as He et al. count them: a deep stem is one."""
        return self.convs_per_block * sum(self.blocks_per_stage) + 2

    def projection_kernel(self, stage: int) -> int:
        """Return the side of the kernel of the projection of `stage`, counted from 0."""
        return self.projection_kernels[stage] if self.projection_kernels else 1

    def stride_of_stage(self, stage: int) -> int:
        """Return the stride of the first block of `stage`, counted from 0."""
        return self.first_stage_stride if stage == 0 else 2

    def stride_of_conv(self, number: int, block_stride: int) -> int:
        """Return the stride of a block's convolution `number`, from 1, in a block that strides by `block_stride`."""
        return block_stride if number == self.striding_conv else 1


@dataclass(frozen=True)
class PreActResNetSpec(ResNetSpec):
    """A pre-activation ResNet (He et al. 2016, arXiv:1603.05027); also the wide ones (arXiv:1605.07146)."""

    projection_input: ProjectionInput = "activated"
    """What a projection takes: the block's input, before or after the block's first BatchNorm and ReLU."""
    final_norm: bool = True
    """Whether a BatchNorm and a ReLU follow the last block."""
