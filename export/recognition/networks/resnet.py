"""ResNets of every family: `ResNet(spec)`, under torchvision's tensor names.

The topology is He et al. 2015 (arXiv:1512.03385) as torchvision writes it: a bottleneck strides on its 3x3 convolution
("v1.5"), a basic block on its first. Every stage but the first halves the picture. A 7x7 stem, or one of three 3x3
convolutions, strides by 2 and a max-pool follows; a single 3x3 one, for 32x32 pictures, has neither. Tensors say
nothing about strides, so a network that strides elsewhere can't be told from its tensors.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.recognition.networks.activations import ACTIVATIONS
from fuseline.export.recognition.networks.resnet_spec import Activation, ConvRole, PaddedShortcut, ResNetSpec

__all__ = ["ResNet", "ResNetSpec", "average_pool", "stem_convolutions", "stem_pool"]


class ResNet(nn.Module):
    """The network of `spec`: float32 NCHW, already normalised, in; logits (rows, classes), float32, out.

    It takes any batch, and any picture size of at least one pixel per stride; no control flow depends on the data.
    Every BatchNorm takes the output of one convolution, which nothing else takes.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = stem_convolutions(spec)
        self.bn1 = norm_after("stem", spec.stem_width, spec)
        self.maxpool = stem_pool(spec)
        for stage, blocks in enumerate(spec.blocks_per_stage):
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(*(ResidualBlock(spec, stage, block) for block in range(blocks)))
            )
        self.fc = nn.Linear(spec.out_widths[-1], spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (rows, classes) of `images` (rows, channels, height, width)."""
        features = self.maxpool(ACTIVATIONS[self.spec.activation](self.bn1(self.conv1(images))))
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
        stride = spec.stride_of_stage(stage) if block == 0 else 1
        first, second = (spec.stride_of_conv(number, stride) for number in (1, 2))
        biased = spec.biased_convs
        if spec.block == "basic":
            self.conv1 = nn.Conv2d(in_width, inner, 3, first, 1, bias="conv1" in biased)
            self.bn1 = norm_after("conv1", inner, spec)
            self.conv2 = nn.Conv2d(inner, out, 3, second, 1, bias="conv2" in biased)
            self.bn2 = norm_after("conv2", out, spec)
        else:
            self.conv1 = nn.Conv2d(in_width, inner, 1, first, bias="conv1" in biased)
            self.bn1 = norm_after("conv1", inner, spec)
            self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=spec.groups, bias="conv2" in biased)
            self.bn2 = norm_after("conv2", inner, spec)
            self.conv3 = nn.Conv2d(inner, out, 1, bias="conv3" in biased)
            self.bn3 = norm_after("conv3", out, spec)
        self.se = SqueezeExcitation(out, spec.squeeze_widths[stage]) if spec.squeeze_widths else nn.Identity()
        self.bottleneck = spec.block == "bottleneck"
        self.activation = ACTIVATIONS[spec.activation]
        self.inner_activation = ACTIVATIONS[spec.inner_activation]
        self.pool: nn.Module = nn.Identity()
        self.adds_input = spec.adds_inputs
        self.downsample: nn.Module
        if block == 0 and spec.projected_stages[stage]:
            if spec.pooled_shortcuts and stride == 2:
                self.pool, stride = average_pool(), 1
            kernel = spec.projection_kernel(stage)
            projection = nn.Conv2d(in_width, out, kernel, stride, kernel // 2, bias="shortcut" in biased)
            self.downsample = nn.Sequential(projection, norm_after("shortcut", out, spec))
        elif not self.adds_input:
            self.downsample = nn.Identity()
        elif stride == 2:
            self.downsample = PaddedIdentity(out - in_width, spec.padded_shortcut)
        elif in_width == out:
            self.downsample = nn.Identity()
        else:
            raise ValueError(f"stage 1 takes {in_width} channels and gives {out}, so it needs a projection")

    def forward(self, features: Tensor) -> Tensor:
        """Return the feature map, NCHW, of the same rows."""
        residual = self.bn2(self.conv2(self.inner_activation(self.bn1(self.conv1(features)))))
        if self.bottleneck:
            residual = self.bn3(self.conv3(self.inner_activation(residual)))
        residual = self.se(residual)
        return self.activation(residual + self.downsample(self.pool(features)) if self.adds_input else residual)


class SqueezeExcitation(nn.Module):
    """Each channel times a factor of 0..1 computed from all channels' means (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the feature map, of the same shape."""
        gate: Tensor = self.fc2(F.relu(self.fc1(features.mean((2, 3), keepdim=True))))
        return features * gate.sigmoid()


class PaddedIdentity(nn.Module):
    """He et al.'s option A: the input at half the side, with channels of zeros added.

    The paper leaves open where the zeros go and how the side is halved. github.com/akamaster/pytorch_resnet_cifar10
    takes every second pixel and puts half of the zeros before and half after; others put all after, or average.
    """

    def __init__(self, new_channels: int, kind: PaddedShortcut) -> None:
        super().__init__()
        self.averages = kind.startswith("average")
        self.before = new_channels // 2 if kind.endswith("around") else 0
        self.after = new_channels - self.before

    def forward(self, features: Tensor) -> Tensor:
        """Return the feature map with half the side and more channels."""
        halved = F.avg_pool2d(features, 2) if self.averages else features[:, :, ::2, ::2]
        return F.pad(halved, (0, 0, 0, 0, self.before, self.after))


def stem_convolutions(spec: ResNetSpec) -> nn.Module:
    """Return the stem, a 3x3 or 7x7 convolution or three of 3x3, without the BatchNorm that may follow the last."""
    bias = "stem" in spec.biased_convs
    if spec.stem == "3x3":
        return nn.Conv2d(spec.in_channels, spec.stem_width, 3, spec.stem_strides_by, 1, bias=bias)
    if spec.stem == "7x7-maxpool":
        return nn.Conv2d(spec.in_channels, spec.stem_width, 7, spec.stem_strides_by, 3, bias=bias)
    first, second = spec.stem_inner_widths
    return nn.Sequential(
        nn.Conv2d(spec.in_channels, first, 3, spec.stem_strides_by, 1, bias=bias),
        norm_after("stem", first, spec),
        activation_layer(spec.activation),
        nn.Conv2d(first, second, 3, 1, 1, bias=bias),
        norm_after("stem", second, spec),
        activation_layer(spec.activation),
        nn.Conv2d(second, spec.stem_width, 3, 1, 1, bias=bias),
    )


def stem_pool(spec: ResNetSpec) -> nn.Module:
    """Return the pool that follows the stem's activation, or nothing."""
    pools = {"none": nn.Identity(), "max3": nn.MaxPool2d(3, 2, 1), "max2": nn.MaxPool2d(2)}
    return pools[spec.pool_after_stem]


def activation_layer(activation: Activation) -> nn.Module:
    """Return `activation` as a module."""
    return nn.ReLU() if activation == "relu" else _ActivationLayer(activation)


class _ActivationLayer(nn.Module):
    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.compute = ACTIVATIONS[activation]

    def forward(self, features: Tensor) -> Tensor:
        return self.compute(features)


def norm_after(role: ConvRole, width: int, spec: ResNetSpec) -> nn.Module:
    """Return the BatchNorm after a convolution of `width` channels, or nothing where `spec` has none."""
    return nn.Identity() if role in spec.bare_convs else nn.BatchNorm2d(width, spec.eps)


def average_pool() -> nn.Module:
    """Return the pool that halves the map before a projection; windows beyond the edge average what lies inside."""
    return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
