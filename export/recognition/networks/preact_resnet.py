"""Pre-activation ResNets of every family: `PreActResNet(spec)`, under names like torchvision's.

In He et al. 2016 (arXiv:1603.05027) BatchNorm and ReLU come before each convolution, and a block's sum is passed on
unchanged. Wide ResNets (Zagoruyko and Komodakis 2016, arXiv:1605.07146) are the same with more channels. Strides are
those of `fuseline.export.recognition.networks.resnet` unless the spec says otherwise.
"""

from torch import Tensor, nn

from fuseline.export.recognition.networks.activations import ACTIVATIONS
from fuseline.export.recognition.networks.resnet import average_pool, stem_convolutions, stem_pool
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec


class PreActResNet(nn.Module):
    """The network of `spec`: float32 NCHW, already normalised, in; logits (rows, classes), float32, out.

    The stem's last convolution has no BatchNorm after it: the first block begins with one.
    """

    def __init__(self, spec: PreActResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = stem_convolutions(spec)
        self.maxpool = stem_pool(spec)
        for stage, blocks in enumerate(spec.blocks_per_stage):
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(*(PreActBlock(spec, stage, block) for block in range(blocks)))
            )
        if spec.final_norm:
            self.bn = nn.BatchNorm2d(spec.out_widths[-1], spec.eps)
        self.fc = nn.Linear(spec.out_widths[-1], spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (rows, classes) of `images` (rows, channels, height, width)."""
        features = self.maxpool(self.conv1(images))
        for stage in range(1, len(self.spec.blocks_per_stage) + 1):
            features = self.get_submodule(f"layer{stage}")(features)
        if self.spec.final_norm:
            features = ACTIVATIONS[self.spec.activation](self.bn(features))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and convolution, two or three times, beside a shortcut without BatchNorm."""

    def __init__(self, spec: PreActResNetSpec, stage: int, block: int) -> None:
        super().__init__()
        in_width = spec.in_widths[stage] if block == 0 else spec.out_widths[stage]
        inner, out = spec.inner_widths[stage], spec.out_widths[stage]
        stride = spec.stride_of_stage(stage) if block == 0 else 1
        first, second = (spec.stride_of_conv(number, stride) for number in (1, 2))
        biased = spec.biased_convs
        self.bn1 = nn.BatchNorm2d(in_width, spec.eps)
        self.bn2 = nn.BatchNorm2d(inner, spec.eps)
        if spec.block == "basic":
            self.conv1 = nn.Conv2d(in_width, inner, 3, first, 1, bias="conv1" in biased)
            self.conv2 = nn.Conv2d(inner, out, 3, second, 1, bias="conv2" in biased)
        else:
            self.conv1 = nn.Conv2d(in_width, inner, 1, first, bias="conv1" in biased)
            self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=spec.groups, bias="conv2" in biased)
            self.bn3 = nn.BatchNorm2d(inner, spec.eps)
            self.conv3 = nn.Conv2d(inner, out, 1, bias="conv3" in biased)
        self.activation = ACTIVATIONS[spec.activation]
        self.bottleneck = spec.block == "bottleneck"
        self.projects = block == 0 and spec.projected_stages[stage]
        self.projects_activated = spec.projection_input == "activated"
        if self.projects:
            pooled = spec.pooled_shortcuts and stride == 2
            self.pool = average_pool() if pooled else nn.Identity()
            kernel, stride = spec.projection_kernel(stage), 1 if pooled else stride
            self.downsample = nn.Conv2d(in_width, out, kernel, stride, kernel // 2, bias="shortcut" in biased)
        elif stride == 2 or in_width != out:
            raise ValueError(f"stage {stage + 1} changes the feature map's shape, so it needs a projection")

    def forward(self, features: Tensor) -> Tensor:
        """Return the feature map, NCHW, of the same rows."""
        activated = self.activation(self.bn1(features))
        residual: Tensor = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        if self.bottleneck:
            residual = self.conv3(self.activation(self.bn3(residual)))
        if not self.projects:
            return residual + features
        projected: Tensor = self.downsample(self.pool(activated if self.projects_activated else features))
        return residual + projected
