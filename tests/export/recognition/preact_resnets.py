"""Pre-activation, wide and plain networks as people write them, independent of export/."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


class PreAct(nn.Module):
    """`shortcut` or `downsample` without BatchNorm; basic or bottleneck; the projection takes either input."""

    def __init__(self, channels, planes, stride, *, bottleneck, raw, shortcut):
        super().__init__()
        out = 4 * planes if bottleneck else planes
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(planes)
        if bottleneck:
            self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(planes)
            self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.raw = raw
        self.projection = shortcut
        if stride != 1 or channels != out:
            self.add_module(shortcut, nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False)))

    def forward(self, x):
        out = torch.relu(self.bn1(x))
        beside = x
        if hasattr(self, self.projection):
            beside = getattr(self, self.projection)(x if self.raw else out)
        out = torch.relu(self.bn2(self.conv1(out)))
        out = self.conv2(out)
        if hasattr(self, "conv3"):
            out = self.conv3(torch.relu(self.bn3(out)))
        return out + beside


class PreActNetwork(nn.Module):
    """`conv1`, stages, perhaps `bn`, then `linear` or `fc`."""

    def __init__(
        self,
        counts,
        widths,
        *,
        stem=None,
        bottleneck=False,
        raw=False,
        shortcut="shortcut",
        final_norm=None,
        classifier="linear",
        in_channels=3,
        classes=10,
    ):
        super().__init__()
        channels = stem or widths[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(PreAct(channels, width, stride, bottleneck=bottleneck, raw=raw, shortcut=shortcut))
                channels = 4 * width if bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(counts)
        self.final_norm = final_norm
        if final_norm:
            self.add_module(final_norm, nn.BatchNorm2d(channels))
        self.classifier = classifier
        self.add_module(classifier, nn.Linear(channels, classes))

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        if self.final_norm:
            x = torch.relu(getattr(self, self.final_norm)(x))
        return getattr(self, self.classifier)(x.mean(dim=(2, 3)))


class WideBlock(nn.Module):
    """A wide block with `convShortcut`, which takes what the first BatchNorm and ReLU give."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = None if channels == planes else nn.Conv2d(channels, planes, 1, stride, bias=False)

    def forward(self, x):
        first = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(first))))
        return out + (x if self.convShortcut is None else self.convShortcut(first))


class WideNetwork(nn.Module):
    """`block1.layer.0`, a last `bn1`, `fc`."""

    def __init__(self, depth, k, classes=10):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for index, width in enumerate((16 * k, 32 * k, 64 * k)):
            first = WideBlock(channels, width, 2 if index else 1)
            rest = [WideBlock(width, width, 1) for _ in range(count - 1)]
            holder = nn.Module()
            holder.layer = nn.Sequential(first, *rest)
            self.add_module(f"block{index + 1}", holder)
            channels = width
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
        x = F.relu(self.bn1(x))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class BiasedWideBlock(nn.Module):
    """A wide block that strides on its second convolution and projects its raw input; all convolutions have biases."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != planes:
            self.shortcut.append(nn.Conv2d(channels, planes, 1, stride))

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class BiasedWideNetwork(nn.Module):
    """`layer1.0`, a last `bn1`, `linear`."""

    def __init__(self, depth, k, classes=10):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        channels = 16
        for index, width in enumerate((16 * k, 32 * k, 64 * k)):
            first = BiasedWideBlock(channels, width, 2 if index else 1)
            self.add_module(
                f"layer{index + 1}", nn.Sequential(first, *(BiasedWideBlock(width, width, 1) for _ in range(count - 1)))
            )
            channels = width
        self.bn1 = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class PlainReference(nn.Module):
    """`features.N` and `fc`: no shortcuts. `gaps` puts layers without tensors at these places."""

    def __init__(self, widths, *, stem=3, bias=False, pool=False, in_channels=3, classes=10, gaps=None):
        super().__init__()
        gaps = dict(gaps or {})
        if pool:
            gaps[3] = nn.MaxPool2d(3, 2, 1)
        layers = OrderedDict()
        channels = in_channels

        def add(layer):
            while len(layers) in gaps:
                layers[str(len(layers))] = gaps.pop(len(layers))
            layers[str(len(layers))] = layer

        for index, width in enumerate(widths):
            kernel = stem if index == 0 else 3
            strides = kernel == 7 if index == 0 else width == 2 * channels
            add(nn.Conv2d(channels, width, kernel, 2 if strides else 1, kernel // 2, bias=bias))
            add(nn.BatchNorm2d(width))
            add(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.features(x).mean(dim=(2, 3)))
