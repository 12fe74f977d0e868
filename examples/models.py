"""The networks that `train.py` trains, written as people commonly write them; independent of `export/`.

`resnet18-cifar` is the ResNet-18 of He et al. (2015, https://arxiv.org/abs/1512.03385) with the 3x3 stem and the
projection shortcuts (option B) that are usual for 32x32 pixels. Its tensors carry the names of
https://github.com/kuangliu/pytorch-cifar: conv1, bn1, layer1.0.conv1, layer2.0.shortcut.0, linear. With a width of 64
and 10 classes it has 11,173,962 parameters.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional


def build_model(name: str, *, width: int, classes: int) -> nn.Module:
    """Make the network called `name`: float32 normalised RGB (rows, 3, 32, 32) to logits (rows, `classes`).

    `width` is the channel count of the first stage; each later stage has twice the one before.

    Raises:
        ValueError: no network is called `name`, or `width` or `classes` is below 1.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(sorted(MODELS))}")
    if width < 1 or classes < 1:
        raise ValueError(f"width and classes must be at least 1, got width {width} and {classes} classes")
    return MODELS[name](width, classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (rows, channels_in, height, width) to (rows, channels_out, height / stride, width / stride)."""
        out = functional.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(features))


class CifarResNet(nn.Module):
    """3x3 stem, four stages, global average pooling, one linear layer."""

    def __init__(self, blocks_per_stage: tuple[int, int, int, int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks_per_stage[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks_per_stage[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks_per_stage[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks_per_stage[3], stride=2)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised RGB (rows, 3, height, width), float32, to logits (rows, classes)."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean(dim=(2, 3)))


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18-cifar": lambda width, classes: CifarResNet((2, 2, 2, 2), width, classes),
}
