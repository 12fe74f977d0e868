"""Each value of what no tensor tells, held against a network that was written with it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import Recognised, recognise, with_values
from fuseline.serve.errors import ArchitectureError, InputError
from tests.export.recognition.preact_resnets import PreActNetwork
from tests.export.recognition.torchscript_files import saved
from tests.export.resnets import CifarBasic, CifarResNet, cifar_resnet18, trained_like
from tests.export.small_resnets import SHORTCUTS, SmallResNet


def assert_same(reference: nn.Module, recognised: Recognised, side: int = 32) -> None:
    images = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(recognised.module(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_each_parameter_free_shortcut_computes_what_it_says(shortcut: str) -> None:
    reference = trained_like(SmallResNet(shortcut))
    assert_same(reference, recognise(reference.state_dict(), assumed={"shortcut": shortcut}))


class PlainBlock(CifarBasic):
    """Of He et al.'s plain network for CIFAR-10: the tensors of a residual block with option A, and no shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 1, 2)])
def test_that_there_are_no_shortcuts_computes_what_it_says(blocks: tuple[int, ...]) -> None:
    reference = trained_like(CifarResNet(PlainBlock, blocks, (8, 16, 32), option="A"))
    recognised = recognise(reference.state_dict(), assumed={"shortcut": "none"})
    assert "no shortcuts" in recognised.architecture
    assert "option A" not in recognised.architecture
    assert_same(reference, recognised)
    assert_same(reference, dataclasses.replace(recognised, module=with_values(recognised, {"shortcut": "none"})))


def test_a_torchscript_file_without_shortcuts_is_told_the_flag(tmp_path: Path) -> None:
    reference = trained_like(CifarResNet(PlainBlock, (1, 1, 1), (8, 16, 32), option="A"))
    checkpoint = read_checkpoint(saved(reference, tmp_path / "plain.pt", "trace", side=32))
    with pytest.raises(ArchitectureError, match="--assume shortcut=none"):
        recognise(checkpoint.tensors, program=checkpoint.program)
    told = recognise(checkpoint.tensors, program=checkpoint.program, assumed={"shortcut": "none"})
    assert_same(reference, told)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("leaky-relu", F.leaky_relu),
        ("leaky-relu-0.1", lambda x: F.leaky_relu(x, 0.1)),
        ("relu6", F.relu6),
        ("elu", F.elu),
        ("celu", F.celu),
        ("selu", F.selu),
        ("gelu", F.gelu),
        ("silu", F.silu),
        ("mish", F.mish),
        ("hardswish", F.hardswish),
        ("tanh", torch.tanh),
    ],
)
def test_each_activation_computes_what_it_says(activation, function, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = trained_like(cifar_resnet18(width=8))
    tensors = reference.state_dict()
    recognised = recognise(tensors, assumed={"activation": activation})
    monkeypatch.setattr("tests.export.resnets.F.relu", function)
    assert_same(reference, recognised)


def test_eps_computes_what_it_says() -> None:
    reference = trained_like(cifar_resnet18(width=8))
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.1
    assert_same(reference, recognise(reference.state_dict(), assumed={"eps": "0.1"}))


@pytest.mark.parametrize(
    ("pool", "layer"), [("max3", nn.MaxPool2d(3, 2, 1)), ("max2", nn.MaxPool2d(2)), ("none", nn.Identity())]
)
def test_strides_and_pools_compute_what_they_say(pool: str, layer: nn.Module) -> None:
    reference = trained_like(cifar_resnet18(width=8))
    reference.conv1.stride = (2, 2)
    reference.bn1 = nn.Sequential(reference.bn1, nn.ReLU(), layer)
    tensors = {name.replace("bn1.0.", "bn1.", 1) if name.startswith("bn1.0") else name: tensor
               for name, tensor in reference.state_dict().items()}  # fmt: skip
    assert_same(reference, recognise(tensors, assumed={"stem-stride": "2", "pool": pool}))


def test_the_striding_convolution_computes_what_it_says() -> None:
    reference = trained_like(cifar_resnet18(width=8))
    for block in reference.modules():
        if isinstance(block, CifarBasic) and block.conv1.stride == (2, 2):
            block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
    assert_same(reference, recognise(reference.state_dict(), assumed={"stride": "conv2"}))


def test_the_input_of_projections_computes_what_it_says() -> None:
    """Where two schemes differ in it alone, saying it chooses between them."""
    reference = trained_like(PreActNetwork((1, 1), (8, 16), bottleneck=False))
    recognised = recognise(reference.state_dict())
    assert {a.key: a.value for a in recognised.assumptions}["projection"] == "activated"
    assert_same(reference, recognised)
    raw = recognise(reference.state_dict(), assumed={"projection": "raw"})
    assert raw.spec.projection_input == "raw"


def test_other_values_share_the_weights_and_keep_the_file_s_eps() -> None:
    reference = trained_like(SmallResNet())
    recognised = recognise(reference.state_dict(), assumed={"eps": "0.01"})
    other = with_values(recognised, {"shortcut": "zeros-after"})
    assert other.conv1.weight.data_ptr() == recognised.module.conv1.weight.data_ptr()
    assert other.bn1.eps == 0.01
    assert with_values(recognised, {"eps": "0.001"}).bn1.eps == 0.001


def test_a_value_that_no_choice_has_is_refused() -> None:
    with pytest.raises(InputError, match="--assume shortcut=zeros: one of zeros-around"):
        recognise(SmallResNet().state_dict(), assumed={"shortcut": "zeros"})
