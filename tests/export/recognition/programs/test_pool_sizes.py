"""For which pictures a pool of a fixed size in the file covers the last map."""

import pytest
import torch
import torchvision
from torch import nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import assert_equal_logits
from tests.export.recognition.torchscript_files import recognised_in, saved
from tests.export.resnets import cifar_resnet18, trained_like


class Pooled(nn.Module):
    """A ResNet-18 for small pictures, as it is often written for 28 x 28 and for 32 x 32 alike."""

    def __init__(self, pool: nn.Module, in_channels: int = 3) -> None:
        super().__init__()
        network = cifar_resnet18(width=4, in_channels=in_channels)
        for name, child in network.named_children():
            setattr(self, name, child)
        self.pool = pool

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.linear(x.flatten(1))


def of(network: nn.Module, path, how: str):
    if how == "script":
        return recognised_in(saved(network, path, "script"))
    torch.save(network, path)
    checkpoint = read_checkpoint(path)
    return recognise(checkpoint.tensors, layer_settings=checkpoint.layer_settings)


@pytest.mark.parametrize("how", ["script", "pickle"])
@pytest.mark.parametrize(("ceil_mode", "smallest"), [(False, 25), (True, 1)])
def test_a_pool_for_28_and_32_says_that_it_is_for_both(tmp_path, how, ceil_mode, smallest):
    network = trained_like(Pooled(nn.AvgPool2d(4, ceil_mode=ceil_mode)))
    recognised = of(network, tmp_path / "model.pt", how)
    assert recognised.implied_input_size == (32, 32)
    assert recognised.takes_sizes == ((smallest, smallest), (32, 32))
    (assumption,) = (assumption for assumption in recognised.assumptions if assumption.key == "size")
    assert (assumption.value, assumption.alternatives, assumption.is_open) == ("32", ("28",), True)
    for side in (28, 32):
        assert_equal_logits(network, recognised, side=side)


@pytest.mark.parametrize("how", ["script", "pickle"])
def test_of_grey_pictures_none_of_the_two_is_guessed(tmp_path, how):
    recognised = of(trained_like(Pooled(nn.AvgPool2d(4), in_channels=1)), tmp_path / "model.pt", how)
    assert (recognised.implied_input_size, recognised.default_input_size) == (None, None)
    assert recognised.takes_sizes == ((25, 25), (32, 32))


@pytest.mark.parametrize(("kernel", "smallest"), [(7, 193), ((7, 5), (193, 129))])
def test_one_customary_size_is_told(tmp_path, kernel, smallest):
    network = torchvision.models.resnet18(num_classes=5)
    network.avgpool = nn.AvgPool2d(kernel)
    recognised = of(network, tmp_path / "model.pt", "pickle")
    assert recognised.implied_input_size == ((224, 224) if kernel == 7 else (224, 160))
    assert recognised.takes_sizes[0] == ((smallest, smallest) if kernel == 7 else smallest)
    assert not any(assumption.key == "size" for assumption in recognised.assumptions)
