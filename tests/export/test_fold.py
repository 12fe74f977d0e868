import pytest
import torch
from torch import nn

from export.architectures import recognise
from export.fold import batchnorm_gain, check_no_batchnorm, fold_batchnorm, fold_input_scale, fold_network
from export.resnet import conv_bn_pairs
from serve.errors import ArchitectureError
from tests.export.resnets import tiny_network, trained_like

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


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
    weight, offset = fold_batchnorm(conv.weight, conv.bias, bn)
    folded = nn.functional.conv2d(x, weight, offset, 2, 1, groups=groups)
    torch.testing.assert_close(folded, bn(conv(x)).detach(), rtol=1e-12, atol=1e-12)


def test_the_gain_is_gamma_over_the_root_of_variance_plus_eps() -> None:
    bn = nn.BatchNorm2d(2, eps=1e-3).double()
    bn.weight.data = torch.tensor([3.0, -4.0], dtype=torch.float64)
    bn.running_var = torch.tensor([0.25 - 1e-3, 4 - 1e-3], dtype=torch.float64)
    torch.testing.assert_close(batchnorm_gain(bn).detach(), torch.tensor([6.0, -2.0], dtype=torch.float64))


def test_the_input_scale_is_one_over_255_std_by_input_channel() -> None:
    weight = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        fold_input_scale(weight, (0.5, 0.25, 0.1)).flatten(),
        torch.tensor([1 / 127.5, 1 / 63.75, 1 / 25.5], dtype=torch.float64),
    )


def test_a_whole_network_keeps_its_logits_also_at_the_padded_border() -> None:
    network = recognise(tiny_network().state_dict()).module
    pixels = torch.randint(0, 256, (3, 3, 32, 32)).float()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    normalised = (pixels / 255 - mean) / std
    folded = fold_network(
        network, conv_bn_pairs(network), first_convolution="conv1", mean=MEAN, std=STD, probe=normalised
    )
    with torch.inference_mode():
        expected = network(normalised)
        given = folded.module(pixels - torch.tensor(folded.pixel_mean).reshape(1, 3, 1, 1))
    spread = float(expected.max() - expected.min())
    assert float((given - expected).abs().max()) < 1e-5 * spread


def test_every_fold_is_recorded_with_its_error_and_the_original_is_untouched() -> None:
    network = recognise(tiny_network().state_dict()).module
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pairs = conv_bn_pairs(network)
    probe = torch.randn(2, 3, 32, 32)
    folded = fold_network(network, pairs, first_convolution="conv1", mean=MEAN, std=STD, probe=probe)
    assert [(fold.convolution, fold.batchnorm) for fold in folded.folds] == pairs
    for fold in folded.folds:
        assert 0 < fold.max_abs_error < 1e-5 * fold.output_range
        assert fold.largest_gain > 0
    assert not [child for child in folded.module.modules() if isinstance(child, nn.BatchNorm2d)]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_batchnorm_that_is_in_no_pair_is_named() -> None:
    network = recognise(tiny_network().state_dict()).module
    pairs = [pair for pair in conv_bn_pairs(network) if pair[1] != "layer2.0.bn2"]
    with pytest.raises(ArchitectureError, match=r"layer2\.0\.bn2"):
        fold_network(network, pairs, first_convolution="conv1", mean=MEAN, std=STD, probe=torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)), "4 outputs"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), "running statistics"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "ReLU and BatchNorm2d"),
    ],
)
def test_a_pair_that_cannot_be_folded_is_refused(pair: nn.Sequential, named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        fold_network(pair, [("0", "1")], first_convolution="0", mean=MEAN, std=STD, probe=torch.zeros(1, 3, 4, 4))


def test_the_proof_names_what_is_left() -> None:
    with pytest.raises(ArchitectureError, match="1"):
        check_no_batchnorm(nn.Sequential(nn.Conv2d(1, 1, 1), trained_like(nn.BatchNorm2d(1))))
