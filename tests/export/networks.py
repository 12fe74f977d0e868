"""Small networks with random weights and running statistics that matter, as a trained network's do."""

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm random gamma, beta and statistics; return `module` in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                for tensor, low, high in (
                    (child.weight, 0.5, 1.5),
                    (child.bias, -0.3, 0.3),
                    (child.running_mean, -0.5, 0.5),
                    (child.running_var, 0.5, 2.0),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


class CifarBlock(nn.Module):
    """A basic block as widely written by hand: `shortcut.0` and `.1` where the shape changes."""

    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(given)
        self.conv2 = nn.Conv2d(given, given, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(given)
        self.shortcut = nn.Sequential()
        if stride != 1 or taken != given:
            self.shortcut = nn.Sequential(nn.Conv2d(taken, given, 1, stride, bias=False), nn.BatchNorm2d(given))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet18(nn.Module):
    """The CIFAR ResNet-18 with 3x3 stem; `width` 64 has 11,173,962 parameters with 10 classes."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            first = CifarBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            layer = nn.Sequential(first, CifarBlock(widths[stage], widths[stage], 1))
            self.add_module(f"layer{stage}", layer)
        self.linear = nn.Linear(widths[4], classes)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            out = self.get_submodule(f"layer{stage}")(out)
        return self.linear(out.mean((2, 3)))


def tiny_network(seed: int = 0) -> CifarResNet18:
    """A CIFAR ResNet-18 of width 8, randomised: exported, verified and served in about a second."""
    torch.manual_seed(seed)
    network = CifarResNet18(width=8)
    randomise(network, seed)
    return network
