import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fuseline.export.folding.trace import trace
from fuseline.export.inspection.receptive_field import receptive_fields
from fuseline.export.inspection.traced_operations import operations_from_trace
from tests.export.inspection.inspections import fields, layer, layers
from tests.export.resnets import option_a_resnet


def test_resnet18_by_hand() -> None:
    found = fields(layers(torchvision.models.resnet18(), side=64))
    # r = r_prev + (k - 1) x product of strides before.
    conv1 = 1 + 6 * 1
    maxpool = conv1 + 2 * 2
    stage1 = maxpool + 4 * (2 * 4)
    stage2 = stage1 + 2 * 4 + 3 * (2 * 8)
    stage3 = stage2 + 2 * 8 + 3 * (2 * 16)
    stage4 = stage3 + 2 * 16 + 3 * (2 * 32)
    assert (conv1, maxpool, stage1, stage2, stage3, stage4) == (7, 11, 43, 99, 211, 435)
    ends = ("conv1", "maxpool", "layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2")
    assert [found[name] for name in ends] == [(r, r) for r in (7, 11, 43, 99, 211, 435)]
    assert found["layer2.0.downsample.0"] == (43, 43), "a 1x1 convolution sees what its input sees"
    assert found["avgpool"] is None
    assert found["fc"] is None


def test_resnet50_by_hand() -> None:
    """torchvision strides in the 3x3 convolution; 1x1 convolutions add nothing."""
    found = fields(layers(torchvision.models.resnet50(), side=64))
    stage1 = 11 + 3 * (2 * 4)
    stage2 = stage1 + 2 * 4 + 3 * (2 * 8)
    stage3 = stage2 + 2 * 8 + 5 * (2 * 16)
    stage4 = stage3 + 2 * 16 + 2 * (2 * 32)
    assert (stage1, stage2, stage3, stage4) == (35, 91, 267, 427)
    ends = ("layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3")
    assert [found[name] for name in ends] == [(r, r) for r in (35, 91, 267, 427)]


def test_cifar_resnet20_by_hand() -> None:
    """Its shortcuts are slices of every second pixel."""
    found = layers(option_a_resnet(20))
    stage1 = 3 + 6 * (2 * 1)
    stage2 = stage1 + 2 * 1 + 5 * (2 * 2)
    stage3 = stage2 + 2 * 2 + 5 * (2 * 4)
    assert (stage1, stage2, stage3) == (15, 37, 81)
    ends = ("layer1.2.conv2", "layer2.2.conv2", "layer3.2.conv2")
    assert [fields(found)[name] for name in ends] == [(r, r) for r in (15, 37, 81)]
    assert [layer(found, name).covers_input for name in ends] == [False, True, True]


def test_a_plain_stack_and_kernels_that_are_not_square() -> None:
    stack = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5)),  # 1 + 2, 1 + 4
        nn.MaxPool2d(2),  # 3 + 1, 5 + 1
        nn.Conv2d(4, 4, 3, stride=(2, 1)),  # 4 + 2 * 2, 6 + 2 * 2
        nn.Conv2d(4, 4, (1, 3), dilation=(1, 3)),  # 8, 10 + 2 * 3 * 2
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    found = layers(stack)
    assert fields(found) == {"0": (3, 5), "1": (4, 6), "2": (8, 10), "3": (8, 22), "4": None, "6": None}
    assert layer(found, "6").covers_input
    assert not layer(found, "3").covers_input
    assert (layer(found, "3").dilation, layer(found, "2").stride) == ((1, 3), (2, 1))


def test_a_dilated_convolution_counts_its_gaps() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=4), nn.Flatten(), nn.Linear(4 * 24 * 24, 10))
    found = layers(stack)
    assert fields(found)["0"] == (1 + 2 * 4, 1 + 2 * 4)
    assert layer(found, "2").sees_whole_input, "a flatten joins every position"


def test_positions_that_convolutions_used_up_are_not_the_whole_picture() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 4, 3, stride=4), nn.Flatten(), nn.Linear(4, 10))
    found = layers(stack)
    assert fields(found) == {"0": (8, 8), "1": (24, 24), "3": (24, 24)}
    assert not layer(found, "3").covers_input


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.after = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.conv(x)
        x = self.after(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return self.fc(x.mean((2, 3)))


def test_behind_a_gate_both_paths_are_told() -> None:
    found = layers(Gate())
    before, gate, after = (layer(found, name) for name in ("conv", "gate", "after"))
    assert (before.receptive_field_pixels, before.sees_whole_input) == ((3, 3), False)
    assert (gate.receptive_field_pixels, gate.sees_whole_input) == (None, True)
    assert (after.receptive_field_pixels, after.sees_whole_input, after.covers_input) == ((5, 5), True, True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.right = nn.Conv2d(4, 4, 1, stride=2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.left(x) + self.right(x)


class Sampled(nn.Module):
    """Slices, padding, channels last, resampling and an uneven adaptive pool."""

    def __init__(self, tail: str) -> None:
        super().__init__()
        self.tail = tail
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1)

    def forward(self, x):
        x = F.pad(self.a(x)[:, :, ::2, 1:], (1, 1, 1, 1))
        x = x.permute(0, 2, 3, 1)[:, :, ::3].permute(0, 3, 1, 2)
        x = {
            "convolution": lambda: x,
            "transposed": lambda: self.up(x),
            "nearest": lambda: F.interpolate(x, scale_factor=2.0),
            "adaptive": lambda: F.adaptive_avg_pool2d(x, (11, 5)),
        }[self.tail]()
        return self.b(x)


@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.AvgPool2d(3, 2), nn.Conv2d(4, 4, (5, 3))), True),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.Conv2d(4, 4, 3, 2, groups=4), nn.Conv2d(4, 4, 3)),
            True,
        ),
        (Residual, True),
        (lambda: Sampled("convolution"), True),
        # Neighbouring positions of a map that grew share pixels, differently from place to place.
        (lambda: Sampled("transposed"), False),
        (lambda: Sampled("nearest"), False),
        (lambda: Sampled("adaptive"), False),
    ],
    ids=["dilated", "grouped", "residual", "sliced", "transposed", "nearest", "adaptive"],
)
def test_it_is_where_the_gradient_is(make, exact: bool) -> None:
    """Every weight is positive, so one output pixel's gradient is above 0 on exactly the pixels that it depends on."""
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    pixels = torch.rand(1, 3, 97, 97, requires_grad=True)
    output = module(pixels)
    height, width = output.shape[-2:]
    (gradient,) = torch.autograd.grad(output[0, 0, height // 2, width // 2], pixels)
    rows, columns = (gradient[0].sum(0).sum(axis).nonzero() for axis in (1, 0))
    seen = tuple(int(found.max() - found.min()) + 1 for found in (rows, columns))

    graph = operations_from_trace(trace(module, (3, 97, 97)), {})
    told = receptive_fields(graph)[graph.operations[-1].output].pixels
    assert told is not None
    if exact:
        assert told == seen
    else:
        assert all(most >= found and most - found < 8 for most, found in zip(told, seen, strict=True)), (told, seen)
