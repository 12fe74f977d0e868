"""CIFAR ResNets of eight channels as people write them, with each kind of parameter-free shortcut."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def zeros_around(features: Tensor, new: int) -> Tensor:
    return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, new // 2, new // 2))


def zeros_after(features: Tensor, new: int) -> Tensor:
    return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, 0, new))


def pooled_zeros_around(features: Tensor, new: int) -> Tensor:
    return F.pad(F.avg_pool2d(features, 2), (0, 0, 0, 0, new // 2, new // 2))


def pooled_zeros_after(features: Tensor, new: int) -> Tensor:
    return F.pad(F.avg_pool2d(features, 2), (0, 0, 0, 0, 0, new))


SHORTCUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "zeros-around": zeros_around,
    "zeros-after": zeros_after,
    "average-zeros-around": pooled_zeros_around,
    "average-zeros-after": pooled_zeros_after,
}


class SmallBlock(nn.Module):
    def __init__(self, channels: int, planes: int, shortcut: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.new, self.pad = planes - channels, shortcut
        self.conv1 = nn.Conv2d(channels, planes, 3, stride=2 if self.new else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (self.pad(x, self.new) if self.new else x))


class SmallResNet(nn.Module):
    """ResNet-8 with stages of 8, 16 and 32 channels; `pool` is its last average pool's kernel, 0 for a global one.

    `stem_pool`: a 3x3 max-pool of stride 2 follows the first convolution.
    """

    def __init__(
        self,
        shortcut: str = "zeros-around",
        channels: int = 3,
        pool: int = 0,
        *,
        stem_stride: int = 1,
        stem_pool: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        pad = SHORTCUTS[shortcut]
        self.conv1 = nn.Conv2d(channels, 8, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(SmallBlock(8, 8, pad))
        self.layer2 = nn.Sequential(SmallBlock(8, 16, pad))
        self.layer3 = nn.Sequential(SmallBlock(16, 32, pad))
        self.linear = nn.Linear(32, 10)
        self.pool, self.stem_pool = pool, stem_pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem_pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, self.pool) if self.pool else F.adaptive_avg_pool2d(x, 1)
        return self.linear(x.flatten(1))
