"""ResNets as people write them, independent of export/: what recognition is held against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def trained_like(module: nn.Module) -> nn.Module:
    """`module` in eval mode with BatchNorms that no longer are the identity."""
    generator = torch.Generator().manual_seed(7)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            for tensor, low, high in (
                (child.weight.data, 0.5, 1.2),
                (child.bias.data, -0.3, 0.3),
                (child.running_mean, -0.3, 0.3),
                (child.running_var, 0.5, 1.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


def on_meta(make, *args, **kwargs) -> dict[str, Tensor]:
    with torch.device("meta"):
        return make(*args, **kwargs).state_dict()


class CifarBasic(nn.Module):
    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int, option: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != planes:
            self.shortcut = EverySecondPixel(planes) if option == "A" else projection(channels, planes, stride)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CifarBottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != 4 * planes:
            self.shortcut = projection(channels, 4 * planes, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class EverySecondPixel(nn.Module):
    def __init__(self, planes: int) -> None:
        super().__init__()
        self.quarter = planes // 4

    def forward(self, x):
        x = x[:, :, ::2, ::2]
        zeros = torch.zeros(x.shape[0], self.quarter, x.shape[2], x.shape[3])
        return torch.cat([zeros, x, zeros], dim=1)


def projection(channels: int, planes: int, stride: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, planes, 1, stride=stride, bias=bias), nn.BatchNorm2d(planes))


class CifarResNet(nn.Module):
    """3x3 stem, `shortcut`, average pooling of the last map, `linear`."""

    def __init__(self, block, counts, planes, classes=10, in_channels=3, **options) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        channels = planes[0]
        self.stages = []
        for index, (count, width) in enumerate(zip(counts, planes, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if index > 0 and number == 0 else 1
                blocks.append(block(channels, width, stride, **options))
                channels = width * block.expansion
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


def cifar_resnet18(width: int = 64, **options) -> CifarResNet:
    return CifarResNet(CifarBasic, (2, 2, 2, 2), [width, 2 * width, 4 * width, 8 * width], **options)


def tiny_network(seed: int = 0) -> CifarResNet:
    """A CIFAR ResNet-18 of width 8 with random weights: exported, verified and served in about a second."""
    torch.manual_seed(seed)
    network: CifarResNet = trained_like(cifar_resnet18(width=8))
    return network


def option_a_resnet(depth: int) -> CifarResNet:
    return CifarResNet(CifarBasic, ((depth - 2) // 6,) * 3, [16, 32, 64], option="A")


class HandWrittenBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, bias: bool, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.shortcut = projection(channels, planes, stride, bias) if shortcut else None

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class HandWrittenResNet34(nn.Module):
    """`shortcut` and `fc`; the stem plain or in a Sequential called conv1."""

    def __init__(self, bias: bool, stem_in_sequential: bool = False, classes: int = 5) -> None:
        super().__init__()
        stem, norm = nn.Conv2d(3, 64, 7, 2, 3, bias=bias), nn.BatchNorm2d(64)
        if stem_in_sequential:
            self.conv1 = nn.Sequential(stem, norm)
        else:
            self.conv1, self.bn1 = stem, norm
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self.stage(64, 64, 3, 1, bias)
        self.layer2 = self.stage(64, 128, 4, 2, bias)
        self.layer3 = self.stage(128, 256, 6, 2, bias)
        self.layer4 = self.stage(256, 512, 3, 2, bias)
        self.fc = nn.Linear(512, classes)

    @staticmethod
    def stage(channels, planes, count, stride, bias):
        rest = [HandWrittenBlock(planes, planes, 1, bias, False) for _ in range(count - 1)]
        return nn.Sequential(HandWrittenBlock(channels, planes, stride, bias, channels != planes), *rest)

    def forward(self, x):
        x = self.conv1(x)
        x = self.maxpool(F.relu(self.bn1(x) if hasattr(self, "bn1") else x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class LeftRightBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int = 1, right: nn.Module | None = None) -> None:
        super().__init__()
        self.left = nn.Sequential(
            nn.Conv2d(channels, planes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 1, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.right = right

    def forward(self, x):
        return F.relu(self.left(x) + (x if self.right is None else self.right(x)))


class LeftRightResNet34(nn.Module):
    """`pre`, `left` and `right`; every stage, the first too, begins with a projection."""

    def __init__(self, planes: tuple[int, ...], classes: int = 7) -> None:
        super().__init__()
        self.pre = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        channels = 64
        for index, (count, width) in enumerate(zip((3, 4, 6, 3), planes, strict=True)):
            stride = 1 if index == 0 else 2
            first = LeftRightBlock(channels, width, stride, projection(channels, width, stride))
            rest = [LeftRightBlock(width, width) for _ in range(count - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(first, *rest))
            channels = width
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.pre(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
