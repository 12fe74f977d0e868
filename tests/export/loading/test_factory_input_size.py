"""Which size of images a network of --factory is for: said, told by the module, assumed aloud, or asked for."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.loading.factory import network_from_factory
from fuseline.export.network import TrainedNetwork
from fuseline.serve.errors import ArchitectureError, InputError
from tests.export.resnets import CifarBasic, CifarResNet, cifar_resnet18


class Cifar(nn.Module):
    """A CIFAR ResNet whose last pool is given."""

    def __init__(self, network: CifarResNet, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.pool = network, pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.network.bn1(self.network.conv1(x)))
        for stage in self.network.stages:
            x = getattr(self.network, stage)(x)
        return self.network.linear(self.pool(x).flatten(1))


class Flattens(nn.Module):
    """Two valid convolutions with pools, and a linear layer on all of the last map: of 5 x 5 from 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 5), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.second(F.max_pool2d(F.relu(self.first(x)), 2))), 2)
        return self.linear(x.view(-1, 100))


class Functional(nn.Module):
    """No module of it is a convolution; the first listed weight is that of the second."""

    def __init__(self, stride: int, channels: int = 3) -> None:
        super().__init__()
        self.later = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.first = nn.Parameter(torch.randn(8, channels, 7, 7))
        self.linear, self.stride = nn.Linear(8, 4), stride

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.first, stride=self.stride, padding=3)
        if self.stride > 1:
            x = F.max_pool2d(x, 3, 2, 1)
        return self.linear(F.conv2d(F.relu(x), self.later, padding=1).mean((2, 3)))


class Strided(nn.Module):
    """Convolutions of the given kernels and strides, then a mean of what is left."""

    def __init__(self, *layers: tuple[int, int], channels: int = 3) -> None:
        super().__init__()
        widths = [channels, *[8] * len(layers)]
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(a, 8, kernel, stride, kernel // 2) for a, (kernel, stride) in zip(widths, layers, strict=False))
        )
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convolutions(x).mean((2, 3)))


class AllConvolutions(nn.Module):
    """Its classifier is a convolution before the pool, so larger pictures give more values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.last(F.relu(self.first(x))), 16).flatten(1)


class Windows(nn.Module):
    """Takes multiples of 32 only, of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 32:
            raise ValueError(f"{x.shape[-1]} pixels are no multiple of 32")
        return self.linear(self.first(x).mean((2, 3)))


class FunctionalConv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.kernel).mean(-1)


def resnet20(pool: Callable[[Tensor], Tensor], in_channels: int = 3) -> Cifar:
    return Cifar(CifarResNet(CifarBasic, (1, 1, 1), [4, 8, 16], in_channels=in_channels), pool)


def adaptive(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainedNetwork]:
    """The network of a factory that builds the given module."""
    networks = ModuleType("users_networks")
    monkeypatch.setitem(sys.modules, "users_networks", networks)

    def network_of(module: nn.Module, metadata: dict[str, Any] | None = None, **sizes: Any) -> TrainedNetwork:
        networks.build = lambda: module  # type: ignore[attr-defined]
        tensors = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
        checkpoint = Checkpoint(Path("own.pt"), "0" * 64, tensors, (), metadata or {})
        return network_from_factory("users_networks:build", {}, checkpoint, **sizes)

    return network_of


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: resnet20(nn.AvgPool2d(8)), 32),
        (lambda: resnet20(lambda x: F.avg_pool2d(x, 8)), 32),
        (lambda: resnet20(lambda x: F.max_pool2d(x, 8)), 32),
        (lambda: resnet20(lambda x: F.avg_pool2d(x, 7), in_channels=1), 28),
        (lambda: resnet20(nn.AvgPool2d(16)), 64),
        (Flattens, 32),
        (lambda: torchvision.models.VisionTransformer(96, 16, 1, 2, 16, 16, num_classes=3), 96),
        (AllConvolutions, 32),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 28),
    ],
    ids=["module", "functional", "max-pool", "grey", "64", "flattens", "positions", "convolutions", "no convolution"],
)
def test_a_module_that_takes_one_size_tells_it(of, make, side):
    network = of(make())
    assert network.implied_input_size == (side, side)
    assert network.default_input_size == side
    assert network.assumptions == ()
    assert any(f"only {side} x {side} go" in sentence for sentence in network.evidence)


def test_old_networks_for_imagenet_tell_224(of):
    module = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4, num_classes=3)
    module.avgpool = nn.AvgPool2d(7, stride=1)
    network = of(module)
    assert (network.implied_input_size, network.assumptions) == ((224, 224), ())


def test_of_several_customary_sizes_one_is_assumed_aloud(of):
    network = of(Cifar(cifar_resnet18(width=4), nn.AvgPool2d(4)))
    assert network.implied_input_size == (32, 32)
    (assumption,) = network.assumptions
    assert (assumption.key, assumption.value, assumption.alternatives) == ("size", "32", ("28",))
    assert assumption.is_open


def test_of_several_customary_sizes_of_grey_images_none_is_guessed(of):
    with pytest.raises(InputError, match="--input-size 28 or --input-size 32; or export with --images DIR"):
        of(Cifar(cifar_resnet18(width=4, in_channels=1), nn.AvgPool2d(4)))


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4), "7x7 with stride 2"),
        (lambda: Strided((4, 4), (3, 1), (3, 2)), "4x4 with stride 4"),
        (lambda: Strided((3, 2), (3, 2), (3, 1)), "3x3 with stride 2"),
        (lambda: Strided((3, 2), (3, 1), (3, 1), (3, 1), *[(3, 2)] * 4), "3x3 with stride 2"),
        (lambda: Functional(2), "7x7 with stride 2"),
    ],
    ids=["resnet", "patches", "two strides", "late strides", "functional"],
)
def test_a_module_that_shrinks_its_picture_as_for_imagenet_is_assumed_to_be_for_224(of, make, seen):
    network = of(make())
    assert (network.default_input_size, network.implied_input_size) == (224, None)
    (assumption,) = network.assumptions
    assert (assumption.key, assumption.value, assumption.flag) == ("size", "224", "--input-size N")
    assert set(assumption.alternatives) >= {"256", "288", "32", "64"}
    assert seen in assumption.meaning
    assert assumption.is_open


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: resnet20(adaptive), "3x3 with stride 1, as networks for small pictures have"),
        (lambda: resnet20(lambda x: F.avg_pool2d(x, x.shape[-1])), "3x3 with stride 1"),
        (lambda: Strided((3, 2), (3, 1), (3, 1), (3, 1), (3, 1), (3, 2)), "3x3 with stride 2"),
        (lambda: Functional(1), "7x7 with stride 1"),
        (Windows, "3x3 with stride 1"),
    ],
    ids=["adaptive", "pool as large as its map", "strides little", "functional", "multiples of 32"],
)
def test_a_module_for_small_pictures_of_any_size_is_asked_about(of, make, seen):
    with pytest.raises(InputError) as refused:
        of(make())
    assert refused.value.exit_code == 2
    for text in (seen, "--input-size 32 (28, 64", "--images DIR"):
        assert text in str(refused.value)


def test_grey_images_are_asked_about_whatever_the_stem(of):
    with pytest.raises(InputError, match=r"its images have 1 channel\. .*--input-size 28 \(32, 64"):
        of(Strided((7, 2), (3, 2), channels=1))


@pytest.mark.parametrize("make", [lambda: resnet20(adaptive), lambda: resnet20(nn.AvgPool2d(8))])
def test_what_is_said_holds(of, make):
    said = of(make(), {"input_size": 40}, input_size=(36, 32), shared_size=(48, 48))
    assert (said.implied_input_size, said.assumptions) == (None, ())
    stored = of(make(), {"input_size": 32}, shared_size=(48, 48))
    assert (stored.default_input_size, stored.implied_input_size, stored.assumptions) == (32, None, ())


def test_the_users_pictures_tell_the_size_where_the_module_takes_it(of):
    network = of(resnet20(adaptive), shared_size=(48, 40))
    assert (network.implied_input_size, network.default_input_size) == ((48, 40), None)
    assert any("pictures are all of 48 x 40 pixels" in sentence for sentence in network.evidence)
    # 40 runs, but an eighth of its last map is left out of the pool.
    assert of(resnet20(nn.AvgPool2d(8)), shared_size=(40, 40)).implied_input_size == (32, 32)
    assert of(resnet20(nn.AvgPool2d(8)), shared_size=(64, 64)).implied_input_size == (32, 32)
    assert of(Cifar(cifar_resnet18(4), nn.AvgPool2d(4)), shared_size=(28, 28)).implied_input_size == (28, 28)


def test_photographs_of_one_size_are_cropped_for_a_network_as_for_imagenet(of):
    assert of(Strided((7, 2), (3, 2)), shared_size=(64, 64)).implied_input_size == (64, 64)
    for shared in ((256, 256), (480, 640)):
        network = of(Strided((7, 2), (3, 2)), shared_size=shared)
        assert (network.default_input_size, network.implied_input_size) == (224, None)
        assert network.assumptions[0].value == "224"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_that_runs_says_the_channels_not_the_first_that_is_listed(of, channels):
    network = of(Functional(2, channels), input_size=(32, 32))
    assert network.in_channels == channels
    backwards = Strided((3, 1), (3, 1), channels=channels)
    backwards.convolutions = nn.Sequential(*backwards.convolutions)
    backwards._modules = dict(reversed(backwards._modules.items()))
    backwards.late = nn.Conv2d(8, 8, 1)
    backwards._modules = {"late": backwards.late, **backwards._modules}
    assert of(backwards, input_size=(32, 32)).in_channels == channels


def test_a_module_that_takes_no_square_says_what_it_raised(of):
    class Wide(Flattens):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 2 * x.shape[-2]:
                raise ValueError("pictures of 2:1 only")
            return super().forward(x[..., : x.shape[-2]])

    with pytest.raises(InputError, match=r"none of the square .* ValueError: pictures of 2:1 only\..*HEIGHTxWIDTH"):
        of(Wide())
    assert of(Wide(), input_size=(32, 64)).classes == 10
    assert of(Wide(), shared_size=(32, 64)).implied_input_size == (32, 64)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 3)), "over one dimension, as for sounds"),
        (lambda: torchvision.models.video.r3d_18(num_classes=2), "over three dimensions, as for volumes"),
        (FunctionalConv1d, "begins with a conv1d"),
    ],
    ids=["sounds", "videos", "functional"],
)
def test_a_network_for_anything_but_pictures_is_refused_at_once(of, make, kind):
    with pytest.raises(ArchitectureError, match=f"{kind}.*pictures \\(2-D\\) only") as refused:
        of(make())
    assert "--input-size" not in str(refused.value)


def test_a_gate_of_one_dimension_beside_convolutions_of_two_is_no_network_for_sounds(of):
    class Gated(Strided):
        def __init__(self) -> None:
            super().__init__((3, 1))
            self.gate = nn.Conv1d(1, 1, 3, padding=1)

    assert of(Gated(), input_size=(16, 16)).classes == 4
