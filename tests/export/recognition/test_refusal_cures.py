"""Refusals say what to do, and doing it leads to a network or to a better refusal: each cure is followed here."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.loading.loading import NetworkSource, network_of
from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.recognition.hand_written import Named, TutorialResNet, tensors_of
from tests.export.resnets import cifar_resnet18, option_a_resnet, trained_like

FACTORY = "--factory package.module:function"
SAVE_AGAIN = "save model.state_dict()"
COMPOSED = {"stem": ("conv", "bn"), "shortcut": ("downsample.0", "downsample.1")}


def test_a_classifier_that_is_not_behind_a_global_pool_is_refused_saying_so(tmp_path: Path):
    network = trained_like(TutorialResNet((1, 1, 1), (4, 8, 16), pool=8, map_side=16))
    message = refusal(network.state_dict())
    assert "fc.weight (10, 64) takes 64 features, 4 for each of the 16 channels" in message
    assert "flattened" in message
    assert FACTORY in message
    assert SAVE_AGAIN not in message
    torch.save(network.state_dict(), tmp_path / "net.pt")
    arguments = {"counts": [1, 1, 1], "widths": [4, 8, 16], "map_side": 16}
    reference = "tests.export.recognition.hand_written:TutorialResNet"
    source = NetworkSource(tmp_path / "net.pt", factory=reference, factory_arguments=arguments)
    assert_equal_logits(network, network_of(read_checkpoint(source.checkpoint), source, (64, 64)), side=64)


@pytest.mark.parametrize("block", ["layer{stage}.{block}", "unit{stage}.{block}"])
def test_a_third_batchnorm_in_basic_blocks_is_called_that(block: str):
    tensors = Named((2, 1, 1), (8, 16, 32), block=block).state_dict()
    third = {
        name.replace("bn2", "bn3"): torch.ones(tensor.shape) for name, tensor in tensors.items() if ".bn2." in name
    }
    message = refusal(tensors | third)
    assert "bn3" in message
    assert "may follow the shortcut or the sum" in message
    assert FACTORY in message
    assert "conv3" not in message
    assert SAVE_AGAIN not in message


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_signals_and_videos_are_told_at_once_that_pictures_are_served(kind: type[nn.Module]):
    network = nn.Sequential(kind(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    message = refusal(network.state_dict())
    assert "classifiers of pictures (2-D) only" in message
    assert "--factory" not in message
    assert SAVE_AGAIN not in message


def test_torchvisions_video_resnet_is_told_that_pictures_are_served():
    with torch.device("meta"):
        network = torchvision.models.video.r3d_18()
    assert "three dimensions, as for volumes or videos: stem.0.weight is (64, 3, 3, 7, 7)" in refusal(
        network.state_dict()
    )


def test_parameters_without_buffers_are_told_from_another_normalisation():
    network = trained_like(cifar_resnet18(width=4))
    message = refusal(dict(network.named_parameters()))
    assert "the parameters alone: then save model.state_dict()" in message
    assert_equal_logits(network, recognise(network.state_dict()), side=32)


def test_a_naming_that_does_not_fit_is_to_be_left_out():
    network = trained_like(option_a_resnet(20))
    for naming in ("huggingface", "plain", "composed-preact"):
        message = refusal(network.state_dict(), naming=naming)
        assert f"Leave --naming {naming} out" in message
        assert SAVE_AGAIN not in message
    assert_equal_logits(network, recognise(network.state_dict()), side=32)


def without(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize("part", ["conv1.weight", "bn1.running_mean", "layer2.0.bn2.bias", "shortcut.1.running_var"])
def test_saving_again_is_said_where_tensors_are_missing_and_nothing_is_left_over(part: str):
    message = refusal(without(tensors_of(cifar_resnet18(width=4)), part))
    assert SAVE_AGAIN in message
    assert "Read by its own names" not in message


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"layer1.0.gamma": torch.ones(1)},
        lambda tensors: tensors | {"conv1.weight": torch.ones(4, 3, 5, 5)},
        lambda tensors: tensors | {"layer1.0.conv1.weight": torch.ones(4, 4, 5, 5)},
    ],
)
def test_saving_again_is_not_said_where_it_is_another_network(change):
    message = refusal(change(tensors_of(cifar_resnet18(width=4))))
    assert SAVE_AGAIN not in message
    assert FACTORY in message


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            lambda: without(Named((2, 1, 1), (8, 16, 32), **COMPOSED).state_dict(), "layer1.1.bn2.running_mean"),
            "layer1.1.bn2, a BatchNorm without running_mean (model.state_dict(), saved whole, has them)",
        ),
        (
            lambda: Named((1, 1), (8, 16), stem=("conv", "bn"), shortcut=None).state_dict(),
            "goes from 8 to 16 channels without a convolution in a shortcut",
        ),
        (
            lambda: (
                Named((1, 1, 1), (8, 16, 32), **COMPOSED).state_dict()
                | {"fc2.weight": torch.ones(2, 5), "fc2.bias": torch.ones(2)}
            ),
            "there are 2 linear layers (fc, fc2)",
        ),
        (
            lambda: Named((1, 1, 1), (8, 16, 32), **COMPOSED).state_dict() | {"mid.weight": torch.ones(8, 8, 3, 3)},
            "there are 2 convolutions beside the blocks `layerN.M` (conv, mid)",
        ),
        (
            lambda: without(Named((1, 2, 1), (8, 16, 32), **COMPOSED).state_dict(), "layer2.0"),
            "expected stages from 1 and blocks from 0 on, without a gap",
        ),
    ],
)
def test_what_names_by_themselves_do_not_tell_is_said(tensors, said: str):
    message = refusal(tensors())
    assert said in message
    assert FACTORY in message


def test_between_residual_blocks_plain_convolutions_are_not_guessed():
    """A ResNet-9's: what pools between its parts, and whether `rblock` adds its input, no tensor tells."""
    network = Named((2,), (16,), block="rblock{flat}", first=(0, 0, 1))
    extra = nn.ModuleDict({"conv2": nn.Conv2d(16, 16, 3), "bn2": nn.BatchNorm2d(16)})
    message = refusal(network.state_dict() | extra.state_dict())
    assert "nothing tells whether shortcuts exist" in message
    assert FACTORY in message


def test_a_backbone_of_own_names_takes_a_head_from_elsewhere():
    network = trained_like(Named((1, 1, 1), (8, 16, 32), **COMPOSED))
    tensors = network.state_dict()
    head = tensors.pop("fc.weight"), tensors.pop("fc.bias")
    assert "--head-from FILE" in refusal(tensors)
    assert_equal_logits(network, recognise(tensors, head=head), side=32)


def test_what_names_tell_to_be_something_else_is_not_read_by_its_blocks():
    """An encoder of MoCo with its projection: `fc` is no classifier."""
    tensors = Named((1, 1, 1), (8, 16, 32), **COMPOSED).state_dict()
    message = refusal({f"encoder_q.{name}": tensor for name, tensor in tensors.items()})
    assert "self-supervised training" in message
    assert "--head-from FILE" in message


def test_the_first_stage_counted_from_0_is_no_reason_to_miss_a_projection():
    network = trained_like(Named((1, 1, 1, 1), (8, 16, 32, 64), first=(0, 0, 0), classifier="out"))
    assert_equal_logits(network, recognise(network.state_dict()), side=32)
