"""ResNets under the names that people's own code has, independent of export/: what readings are held against."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def named(parts: dict[str, nn.Module]) -> nn.Module:
    """A module that holds `parts` under dotted names; containers in between are made."""
    root = nn.Module()
    for name, part in parts.items():
        *containers, last = name.split(".")
        parent = root
        for container in containers:
            if container not in dict(parent.named_children()):
                parent.add_module(container, nn.Module())
            parent = parent.get_submodule(container)
        parent.add_module(last, part)
    return root


class Named(nn.Module):
    """A basic or bottleneck ResNet, each part of which has the name that it is given.

    `stem`, `convs`, `norms` and `shortcut` are names of convolutions and their BatchNorms, in pairs; `block` takes
    `stage`, `block` and `flat`, the number of the block in the whole network, all from `first`.
    """

    def __init__(
        self,
        counts: Sequence[int],
        widths: Sequence[int],
        *,
        stem: Sequence[str] = ("conv1", "bn1"),
        block: str = "layer{stage}.{block}",
        first: tuple[int, int, int] = (1, 0, 0),
        convs: Sequence[str] = ("conv1", "conv2"),
        norms: Sequence[str] = ("bn1", "bn2"),
        shortcut: Sequence[str] | None = ("shortcut.0", "shortcut.1"),
        shortcut_of_stage: bool = False,
        shortcut_kernel: int = 1,
        classifier: str = "fc",
        stem_kernel: int = 3,
        bias: bool = False,
        shortcut_bias: bool = False,
        preact: bool = False,
        project_first: bool = False,
        classes: int = 5,
        ordinals: Sequence[str] = ("first", "second", "third", "fourth"),
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        width = widths[0]
        large = stem_kernel == 7
        parts[stem[0]] = nn.Conv2d(3, width, stem_kernel, 2 if large else 1, stem_kernel // 2, bias=bias)
        if not preact:
            parts[stem[1]] = nn.BatchNorm2d(width)
        self.is_large, self.is_preact, self.in_order = large, preact, []
        flat = 0
        for stage, (count, out) in enumerate(zip(counts, widths, strict=True)):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                given = {"stage": stage + first[0], "block": number + first[1], "flat": flat + first[2]}
                prefix = block.format(**given, ordinal=ordinals[stage])
                inner = out // 4 if len(convs) == 3 else out
                shapes = [(width, inner, 3, stride), (inner, out, 3, 1)]
                if len(convs) == 3:
                    shapes = [(width, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
                for (taken, made, kernel, by), conv, norm in zip(shapes, convs, norms, strict=True):
                    parts[f"{prefix}.{conv}"] = nn.Conv2d(taken, made, kernel, by, kernel // 2, bias=bias)
                    parts[f"{prefix}.{norm}"] = nn.BatchNorm2d(taken if preact else made)
                projects = number == 0 and (stage > 0 or project_first)
                padded = None
                names: list[str] = []
                if projects and shortcut is None:
                    padded = (out - width) // 2
                elif projects:
                    beside = prefix.rpartition(".")[0].removesuffix(".blocks") if shortcut_of_stage else prefix
                    names = [f"{beside}.{name}" for name in shortcut or ()]
                    half = shortcut_kernel // 2
                    parts[names[0]] = nn.Conv2d(width, out, shortcut_kernel, stride, half, bias=shortcut_bias)
                    if len(names) > 1:
                        parts[names[1]] = nn.BatchNorm2d(out)
                steps = [(f"{prefix}.{conv}", f"{prefix}.{norm}") for conv, norm in zip(convs, norms, strict=True)]
                self.in_order.append((steps, names, padded))
                width, flat = out, flat + 1
        if preact:
            parts[stem[1]] = nn.BatchNorm2d(width)
        parts[classifier] = nn.Linear(width, classes)
        self.named_stem, self.named_classifier = tuple(stem), classifier
        for name, child in named(parts).named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        part: Callable[[str], nn.Module] = self.get_submodule
        x = part(self.named_stem[0])(x)
        if not self.is_preact:
            x = F.relu(part(self.named_stem[1])(x))
        if self.is_large:
            x = F.max_pool2d(x, 3, 2, 1)
        for steps, shortcut, padded in self.in_order:
            out, added = x, x
            for number, (conv, norm) in enumerate(steps):
                if self.is_preact:
                    out = F.relu(part(norm)(out))
                    if number == 0 and shortcut:
                        added = part(shortcut[0])(out)
                    out = part(conv)(out)
                else:
                    out = part(norm)(part(conv)(F.relu(out) if number else out))
            if shortcut and not self.is_preact:
                for name in shortcut:
                    added = part(name)(added)
            if padded is not None:
                added = F.pad(added[:, :, ::2, ::2], (0, 0, 0, 0, padded, padded))
            x = out + added if self.is_preact else F.relu(out + added)
        if self.is_preact:
            x = F.relu(part(self.named_stem[1])(x))
        return part(self.named_classifier)(x.mean(dim=(2, 3)))


def conv3x3(channels: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, planes, kernel_size=3, stride=stride, padding=1, bias=False)


class TutorialBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, planes, stride), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv3x3(planes, planes), nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (self.downsample(x) if self.downsample else x))


class TutorialResNet(nn.Module):
    """`conv` and `bn`, projections of 3x3 (github.com/yunjey/pytorch-tutorial); `pool` is the side of its last pool."""

    def __init__(self, counts=(2, 2, 2), widths=(16, 32, 64), classes=10, pool: int = 8, map_side: int = 8) -> None:
        super().__init__()
        self.channels = widths[0]
        self.conv, self.bn = conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stages = []
        for number, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], self.stage(width, count, 1 if number == 1 else 2))
        self.avg_pool = nn.AvgPool2d(pool)
        self.fc = nn.Linear(widths[-1] * (map_side // pool) ** 2, classes)

    def stage(self, width: int, count: int, stride: int) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.channels != width:
            downsample = nn.Sequential(conv3x3(self.channels, width, stride), nn.BatchNorm2d(width))
        blocks = [TutorialBlock(self.channels, width, stride, downsample)]
        self.channels = width
        return nn.Sequential(*blocks, *(TutorialBlock(width, width, 1, None) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.avg_pool(x).flatten(1))


class TinyStack(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, planes, 3, stride, 1),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 1, 1),
            nn.BatchNorm2d(planes),
        )
        self.residual = nn.Identity() if channels == planes else nn.Conv2d(channels, planes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.block(x) + self.residual(x))


class TinyResNet8(nn.Module):
    """MLPerf Tiny's ResNet-8 for CIFAR-10: a block a stage, projections with a bias and without BatchNorm."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.first_stack, self.second_stack, self.third_stack = (
            TinyStack(taken, made, stride) for taken, made, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third_stack(self.second_stack(self.first_stack(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


class Residual(nn.Module):
    """d2l's: `conv3`, with a bias and no BatchNorm, is the shortcut."""

    def __init__(self, channels: int, planes: int, stride: int = 1, use_1x1conv: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1)
        self.conv3 = nn.Conv2d(channels, planes, 1, stride) if use_1x1conv else None
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.conv3 is None else self.conv3(x)))


class BookResNet(nn.Module):
    """d2l's ResNet-18 with a name for each stage."""

    def __init__(self, widths=(8, 16, 24, 32), classes: int = 6) -> None:
        super().__init__()
        self.b1 = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, 2, 3), nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        taken = widths[0]
        for number, width in enumerate(widths, start=2):
            first = Residual(taken, width, 1 if number == 2 else 2, use_1x1conv=number > 2)
            self.add_module(f"b{number}", nn.Sequential(first, Residual(width, width)))
            taken = width
        self.fc = nn.Linear(taken, classes)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 6):
            x = self.get_submodule(f"b{number}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class ListedConvolutions(nn.Module):
    """`conv0` and `convs.N`: with shortcuts around each pair or without, the names and shapes are the same."""

    def __init__(self, shortcuts: bool, pairs: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv0, self.bn0 = conv3x3(3, width), nn.BatchNorm2d(width)
        self.convs = nn.ModuleList(conv3x3(width, width) for _ in range(2 * pairs))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * pairs))
        self.fc, self.shortcuts = nn.Linear(width, 4), shortcuts

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        for number in range(0, len(self.convs), 2):
            out = self.bns[number + 1](self.convs[number + 1](F.relu(self.bns[number](self.convs[number](x)))))
            x = F.relu(out + x if self.shortcuts else out)
        return self.fc(x.mean(dim=(2, 3)))


def children_in_a_row(network: nn.Module) -> nn.Module:
    """`network`'s children but its last in one nn.Sequential, with its classifier behind: the names are numbers."""
    *children, classifier = network.children()
    return nn.Sequential(*children, nn.Flatten(), classifier)


def fused(network: nn.Module) -> nn.Module:
    """`network` with each BatchNorm in its convolution, by torch's own tool, following torchvision's names."""
    from torch.ao.quantization import fuse_modules

    groups = [["conv1", "bn1", "relu"]]
    for name, block in network.named_modules():
        if not hasattr(block, "conv2"):
            continue
        last = 3 if hasattr(block, "conv3") else 2
        groups += [
            [f"{name}.conv{k}", f"{name}.bn{k}", *([f"{name}.relu"] if k == 1 else [])] for k in range(1, last + 1)
        ]
        if getattr(block, "downsample", None) is not None:
            groups.append([f"{name}.downsample.0", f"{name}.downsample.1"])
    return fuse_modules(network.eval(), groups)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
