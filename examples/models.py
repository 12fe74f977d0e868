"""The networks that `train.py` trains, written as people commonly write them; independent of `export/`.

resnet18-cifar  He et al. 2015 (https://arxiv.org/abs/1512.03385) with the 3x3 stem usual for 32x32 pixels and
                projection shortcuts (option B); names of https://github.com/kuangliu/pytorch-cifar
resnet20        section 4.2 of the same paper, n = 3: parameter-free shortcuts (option A); names of
                https://github.com/akamaster/pytorch_resnet_cifar10
plain18         the paper's plain network of 18 layers, for 32x32 pixels: no shortcuts; names `features.N` and `fc`
resnet34        the paper's network for ImageNet, 7x7 stem and max-pool; torchvision's names
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Model:
    """What `train.py` needs to know of a network before it builds it."""

    build: Callable[[int, int], nn.Module]
    """(width, classes) to the network with fresh weights."""
    usual_width: int
    """Channels of the first stage in the paper."""
    usual_input_size: int
    """Side in pixels of the square images that it is made for; it takes others too."""


def build_model(name: str, *, width: int, classes: int) -> nn.Module:
    """Make the network called `name`: float32 normalised RGB (rows, 3, height, width) to logits (rows, `classes`).

    `width` is the channel count of the first stage; each later stage has twice the one before. Every network takes
    any width.

    Raises:
        ValueError: no network is called `name`, or `width` or `classes` is below 1.
    """
    model = find_model(name)
    if width < 1 or classes < 1:
        raise ValueError(f"width and classes must be at least 1, got width {width} and {classes} classes")
    return model.build(width, classes)


def find_model(name: str) -> Model:
    """The row of `MODELS` called `name`. Raises `ValueError` where there is none."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(sorted(MODELS))}")
    return MODELS[name]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; without any shortcut, two layers of a plain network."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, make_shortcut: "MakeShortcut") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = make_shortcut(channels_in, channels_out, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (rows, channels_in, height, width) to (rows, channels_out, height / stride, width / stride)."""
        out = functional.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out if self.shortcut is None else out + self.shortcut(features))


MakeShortcut = Callable[[int, int, int], nn.Module | None]
"""(channels_in, channels_out, stride) to the shortcut of a block."""


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution with BatchNorm where the shape changes, else the identity."""
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class Subsampling(nn.Module):
    """Option A: every `stride`th pixel, with zero channels added, half of them before and half after. No parameters."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, features: Tensor) -> Tensor:
        """Map (rows, channels_in, height, width) to (rows, channels_out, height / stride, width / stride)."""
        picked = features[:, :, :: self.stride, :: self.stride]
        return functional.pad(picked, (0, 0, 0, 0, self.before, self.after))


def no_shortcut(channels_in: int, channels_out: int, stride: int) -> None:
    """That of a plain network."""


class CifarResNet(nn.Module):
    """3x3 stem, stages of basic blocks, global average pooling, one linear layer called `linear`.

    `make_shortcut` decides between option A, option B and a plain network; nothing else depends on it.
    """

    def __init__(
        self, blocks_per_stage: tuple[int, ...], width: int, classes: int, make_shortcut: MakeShortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks_per_stage)
        channels_in = width
        for stage, blocks in enumerate(blocks_per_stage):
            channels_out = width * 2**stage
            stage_blocks = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stage_blocks.append(BasicBlock(channels_in, channels_out, stride, make_shortcut))
                channels_in = channels_out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*stage_blocks))
        self.linear = nn.Linear(channels_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised RGB (rows, 3, height, width), float32, to logits (rows, classes)."""
        out = functional.relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        return self.linear(out.mean(dim=(2, 3)))


class PlainNet(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU in one line, global average pooling, one linear layer.

    Where the width doubles the stride is 2. Two layers for each block of a ResNet with the same `blocks_per_stage`,
    so the depth is the same.
    """

    def __init__(self, blocks_per_stage: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage, blocks in enumerate(blocks_per_stage) for _ in range(2 * blocks)]
        layers: list[nn.Module] = []
        for channels_in, channels_out in zip([3, width, *widths[:-1]], [width, *widths], strict=True):
            stride = 2 if channels_out == 2 * channels_in and layers else 1
            convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised RGB (rows, 3, height, width), float32, to logits (rows, classes)."""
        return self.fc(self.features(images).mean(dim=(2, 3)))


class DownsampledBlock(nn.Module):
    """A basic block whose projection is called `downsample`, and is absent where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = projection(channels_in, channels_out, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (rows, channels_in, height, width) to (rows, channels_out, height / stride, width / stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        return self.relu(out + (features if self.downsample is None else self.downsample(features)))


class ImageNetResNet(nn.Module):
    """7x7 stem of stride 2, max-pool, four stages, global average pooling, one linear layer called `fc`."""

    def __init__(self, blocks_per_stage: tuple[int, int, int, int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _downsampled_stage(width, width, blocks_per_stage[0], stride=1)
        self.layer2 = _downsampled_stage(width, 2 * width, blocks_per_stage[1], stride=2)
        self.layer3 = _downsampled_stage(2 * width, 4 * width, blocks_per_stage[2], stride=2)
        self.layer4 = _downsampled_stage(4 * width, 8 * width, blocks_per_stage[3], stride=2)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised RGB (rows, 3, height, width), float32, to logits (rows, classes)."""
        out = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(out.mean(dim=(2, 3)))


def _downsampled_stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = DownsampledBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(DownsampledBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def with_he_weights(model: nn.Module) -> nn.Module:
    """Draw the convolutions' weights anew as He et al. 2015 (arXiv:1502.01852, equation 14) do; returns `model`.

    Without shortcuts a deep network depends on it: PyTorch's own draw has a sixth of the variance.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


MODELS: dict[str, Model] = {
    "plain18": Model(lambda width, classes: with_he_weights(PlainNet((2, 2, 2, 2), width, classes)), 64, 32),
    "resnet18-cifar": Model(lambda width, classes: CifarResNet((2, 2, 2, 2), width, classes, projection), 64, 32),
    "resnet20": Model(
        lambda width, classes: with_he_weights(CifarResNet((3, 3, 3), width, classes, Subsampling)), 16, 32
    ),
    "resnet34": Model(lambda width, classes: with_he_weights(ImageNetResNet((3, 4, 6, 3), width, classes)), 64, 224),
}
