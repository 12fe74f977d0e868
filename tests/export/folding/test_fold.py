"""Folding on traced graphs: modules and functional calls, what folds, what is left alone, and why."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.folding.fold import FoldedNetwork, check_no_batchnorm, fold_network
from fuseline.export.folding.fold_math import BatchNormTensors, fold_batchnorm, fold_input_scale
from fuseline.export.folding.trace import trace
from fuseline.serve.errors import ArchitectureError
from tests.export.resnets import tiny_network, trained_like

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def folded(module: nn.Module, side: int = 16) -> FoldedNetwork:
    probe = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    return fold_network(module, mean=MEAN, std=STD, probe=probe)


def largest_error(module: nn.Module, network: FoldedNetwork, side: int = 16) -> float:
    """Of logits on pixels, as a share of their range."""
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(1)).float()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    centred = pixels - torch.tensor(network.pixel_mean).reshape(1, 3, 1, 1)
    if network.pixel_scale is not None:
        centred = centred * torch.tensor(network.pixel_scale).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        expected, given = module((pixels / 255 - mean) / std), network.module(centred)
    return float((given - expected).abs().max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("affine", [False, True])
def test_a_folded_pair_is_the_pair_to_float64(bias: bool, groups: int, affine: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, 2, 1, groups=groups, bias=bias).double()
    bn = nn.BatchNorm2d(12, affine=affine).double().eval()
    bn.running_mean.uniform_(-1, 1)
    bn.running_var.uniform_(1e-3, 4)
    if affine:
        nn.init.uniform_(bn.weight, -2, 2)
        nn.init.uniform_(bn.bias, -1, 1)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    tensors = BatchNormTensors(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    weight, offset = fold_batchnorm(conv.weight, conv.bias, tensors)
    given = F.conv2d(x, weight, offset, 2, 1, groups=groups)
    torch.testing.assert_close(given, bn(conv(x)), rtol=1e-12, atol=1e-12)


def test_the_gain_is_gamma_over_the_root_of_variance_plus_eps() -> None:
    gamma, variance = torch.tensor([3.0, -4.0]).double(), torch.tensor([0.25 - 1e-3, 4 - 1e-3]).double()
    batchnorm = BatchNormTensors(gamma, None, torch.zeros(2).double(), variance, 1e-3)
    torch.testing.assert_close(batchnorm.gain, torch.tensor([6.0, -2.0], dtype=torch.float64))


def test_the_input_scale_is_one_over_255_std_by_input_channel() -> None:
    weight = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        fold_input_scale(weight, (0.5, 0.25, 0.1)).flatten(),
        torch.tensor([1 / 127.5, 1 / 63.75, 1 / 25.5], dtype=torch.float64),
    )


def test_a_whole_network_keeps_its_logits_also_at_the_padded_border() -> None:
    network = tiny_network()
    result = folded(network, side=32)
    assert result.pixel_scale is None, "the first convolution carries it"
    assert largest_error(network, result, side=32) < 1e-5


def test_every_fold_is_recorded_with_its_error_and_the_original_is_untouched() -> None:
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = folded(network, side=32)
    assert ("layer2.0.shortcut.0", "layer2.0.shortcut.1") in [(f.convolution, f.batchnorm) for f in result.folds]
    assert len(result.folds) == sum(isinstance(child, nn.BatchNorm2d) for child in network.modules()) == 20
    assert result.kept == ()
    for fold in result.folds:
        assert 0 < fold.max_abs_error < 1e-5 * fold.output_range
        assert fold.largest_gain > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_fold_that_is_off_shows_in_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.export.folding.fold.fold_batchnorm", lambda w, b, bn: (1.5 * w, bn.offset))
    assert all(fold.max_abs_error > 0.01 * fold.output_range for fold in folded(tiny_network(), side=32).folds)


class Functional(nn.Module):
    """A convolution and a BatchNorm that are tensors and calls, twice, beside others in one module."""

    def __init__(self) -> None:
        super().__init__()
        for name, channels in (("first", 3), ("second", 8)):
            self.register_parameter(f"{name}_w", nn.Parameter(torch.randn(8, channels, 3, 3) / 5))
            self.register_parameter(f"{name}_gamma", nn.Parameter(torch.rand(8) + 0.5))
            self.register_parameter(f"{name}_beta", nn.Parameter(torch.randn(8)))
            self.register_buffer(f"{name}_mean", torch.randn(8))
            self.register_buffer(f"{name}_var", torch.rand(8) + 0.5)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second"):
            weight, mean, var, gamma, beta = (
                getattr(self, f"{name}_{p}") for p in ("w", "mean", "var", "gamma", "beta")
            )
            x = F.relu_(F.batch_norm(F.conv2d(x, weight, padding=1), mean, var, gamma, beta, eps=1e-3))
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WithLinear(nn.Module):
    """BatchNorm behind a linear layer, and behind a convolution with `padding="same"`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.hidden, self.hidden_bn = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6, affine=False)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.out(F.relu(self.hidden_bn(self.hidden(x))))


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.running_mean.uniform_(-0.5, 0.5)
            child.running_var.uniform_(0.5, 1.5)
            if child.affine:
                nn.init.uniform_(child.weight, 0.5, 1.5)
                nn.init.uniform_(child.bias, -0.5, 0.5)
    return module.eval()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Functional, [("first_w", "first_mean"), ("second_w", "second_mean")]),
        (WithLinear, [("conv", "bn"), ("hidden", "hidden_bn")]),
    ],
)
def test_functional_calls_linear_layers_and_padding_same_fold_too(
    make: Callable[[], nn.Module], names: list[tuple[str, str]]
) -> None:
    torch.manual_seed(0)
    module = randomised(make())
    result = folded(module)
    assert [(fold.convolution, fold.batchnorm) for fold in result.folds] == names
    assert result.kept == ()
    assert largest_error(module, result) < 1e-5


class SharedBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shared(self.b(F.relu(self.shared(self.a(x))))).mean((2, 3)))


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.shared(self.stem(x))))
        return self.out(self.bn2(self.shared(x)).mean((2, 3)))


class TwoConsumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out((self.bn(x) + x).mean((2, 3)))


class BatchNormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(self.bn(x))).mean((2, 3)))


class StandardisedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        return self.out(F.relu(self.bn(F.conv2d(x, weight, self.conv.bias))).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "kept", "reason"),
    [
        (SharedBatchNorm, ["shared", "shared"], "it is used 2 times"),
        (SharedConvolution, ["bn1", "bn2"], "the layer before it is used 2 times"),
        (TwoConsumers, ["bn"], "the layer before it has 2 consumers"),
        (BatchNormFirst, ["bn"], "it takes the input"),
        (StandardisedWeights, ["bn"], "computed by the network"),
    ],
)
def test_what_cannot_be_folded_is_left_alone_named_and_still_right(
    make: Callable[[], nn.Module], kept: list[str], reason: str
) -> None:
    module = randomised(make())
    result = folded(module)
    assert [one.batchnorm for one in result.kept] == kept
    assert all(reason in one.reason for one in result.kept)
    assert result.folds == ()
    assert largest_error(module, result) < 1e-5
    check_no_batchnorm(result.module)


class Collides(nn.Module):
    """A module and a tensor have the names that a scale and a bias would get."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.bn.scale = nn.Conv2d(3, 3, 1)
        self.conv.register_buffer("bias_like", torch.rand(8))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.bn.scale(self.bn(x)))
        return self.out((self.after(x) * self.conv.bias_like.reshape(-1, 1, 1)).mean((2, 3)))


class DepthwiseFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bn(self.conv(x))).mean((2, 3)))


class AsksForRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bn(self.conv(x))).mean((2, 3)).reshape(x.shape[0], -1))


@pytest.mark.parametrize(("make", "scaled"), [(Collides, True), (DepthwiseFirst, True), (AsksForRows, False)])
def test_odd_modules_keep_their_logits(make: Callable[[], nn.Module], scaled: bool) -> None:
    module = randomised(make())
    result = folded(module)
    assert (result.pixel_scale is not None) == scaled
    assert len(result.folds) == 1
    assert largest_error(module, result) < 1e-5


def test_where_no_convolution_takes_the_input_alone_the_graph_scales_the_pixels() -> None:
    result = folded(randomised(BatchNormFirst()))
    assert result.pixel_scale == pytest.approx([1 / (255 * value) for value in STD])


def test_a_network_far_from_a_resnet_folds_what_it_can() -> None:
    densenet = trained_like(torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5))
    result = folded(densenet, side=32)
    assert len(result.folds) + len(result.kept) == sum(isinstance(m, nn.BatchNorm2d) for m in densenet.modules())
    assert any("cat" in one.reason for one in result.kept)
    assert largest_error(densenet, result, side=32) < 1e-5


def test_a_batchnorm_without_running_statistics_is_refused() -> None:
    pair = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ArchitectureError, match=r"1 normalises by the statistics of its batch.*neighbours"):
        folded(pair)


def test_the_proof_names_what_is_left() -> None:
    with pytest.raises(ArchitectureError, match="1 BatchNorm layers were not folded: batch_norm"):
        check_no_batchnorm(trace(nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).eval(), (3, 8, 8)))
