"""What a TorchScript program does before its network and behind it: pixels of 0..255, and more than one output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import assert_equal_logits
from tests.export.recognition.torchscript_files import recognised_in, recognised_of, saved
from tests.export.resnets import trained_like


def resnet() -> nn.Module:
    return trained_like(ResNet(BasicBlock, [1, 1, 1, 1], 5))


class Wrapped(nn.Module):
    """`before` on pictures of 0..255, `behind` on the logits."""

    def __init__(self, before=lambda _, x: x, behind=lambda logits: logits) -> None:
        super().__init__()
        self.network = resnet()
        self.before, self.behind = before, behind
        self.register_buffer("m", torch.tensor([123.68, 116.78, 103.94]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.behind(self.network(self.before(self, x)))


@pytest.mark.parametrize(
    "before",
    [lambda self, x: x - self.m, lambda _, x: x - 128.0, lambda _, x: x / 127.5 - 1, lambda _, x: x / 255],
    ids=["caffe", "centred", "to one", "scaled"],
)
def test_a_normalisation_of_bytes_is_taken_for_pixels_of_0_to_1(tmp_path, before):
    network = Wrapped(before)
    checkpoint = read_checkpoint(saved(network, tmp_path / "model.pt", "trace"))
    mean, std = (torch.tensor(checkpoint.metadata[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = network(255 * pixels), recognised_of(checkpoint).module((pixels - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


OUTPUTS = {
    "logits and more": lambda logits: (logits, logits.mean(1)),
    "features first": lambda logits: {"mean": logits.mean(1), "out": logits},
    "probabilities and class": lambda logits: (F.softmax(logits, 1), logits.argmax(1)),
    "nested": lambda logits: ((logits, logits.argmax(1)),),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_of_several_outputs_the_classifiers_is_taken(tmp_path, case):
    network = Wrapped(behind=OUTPUTS[case])
    recognised = recognised_in(saved(network, tmp_path / "model.pt", "trace"))
    assert recognised.assumptions == ()
    assert_equal_logits(network.network, recognised, side=64)


def test_two_classifiers_tell_nothing(tmp_path):
    class Two(ResNet):
        def forward(self, x):
            logits = super().forward(x)
            return logits, self.fc(torch.ones(1, 512))

    network = trained_like(Two(BasicBlock, [1, 1, 1, 1], 5))
    checkpoint = read_checkpoint(saved(network, tmp_path / "model.pt", "trace"))
    assert checkpoint.program is None
    assert any("returns a tuple" in note for note in checkpoint.notes)


def test_what_is_made_of_constants_is_no_culprit(tmp_path):
    network = Wrapped(lambda self, x: x[:, [2, 1, 0]] - 2 * torch.ones(3, 1, 1))
    with pytest.raises(ArchitectureError, match="index .*comes behind the pictures") as caught:
        recognised_in(saved(network, tmp_path / "model.pt", "trace"))
    assert "Unknown" not in str(caught.value)


class FirstCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = resnet()

    def forward(self, x):
        layers = self.network
        x = layers.maxpool(layers.relu(layers.bn1(layers.conv1(x))))
        x = layers.avgpool(layers.layer4(layers.layer3(layers.layer2(layers.layer1(x)))))
        return layers.fc(x[:, :, 0, 0])


def test_the_only_cell_of_a_pooled_map_is_the_map(tmp_path):
    network = FirstCell()
    assert_equal_logits(network, recognised_in(saved(network, tmp_path / "model.pt", "trace")), side=64)


def test_what_a_program_computes_no_logits_from_is_left_out(tmp_path):
    network = Wrapped()
    network.other = nn.Linear(7, 3)
    checkpoint = read_checkpoint(saved(network, tmp_path / "model.pt", "trace"))
    assert any("`m`, `other.weight`, `other.bias`" in note for note in checkpoint.notes)
    assert_equal_logits(network.network, recognised_of(checkpoint), side=64)
