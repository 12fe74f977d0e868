"""A backbone without a classifier, and the classifier from another file."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.loading.head import head_from
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import CheckpointError
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.resnets import cifar_resnet18, trained_like
from tests.refusals import refusal_of


def backbone(reference: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith(("fc.", "linear."))}


def saved(tensors, path: Path):
    torch.save(tensors, path)
    return read_checkpoint(path)


def test_a_backbone_is_refused_with_the_flag_that_helps():
    message = refusal(backbone(torchvision.models.resnet18()))
    assert "a backbone without a classifier (torchvision naming): 100 tensors, but no fc.weight" in message
    assert "--head-from FILE" in message


@pytest.mark.parametrize("make", [torchvision.models.resnet18, cifar_resnet18])
def test_a_backbone_with_its_head_is_the_whole_network(make, tmp_path):
    reference = trained_like(make())
    whole = saved(reference.state_dict(), tmp_path / "whole.pt")
    recognised = recognise(backbone(reference), head=head_from(whole))
    assert recognised.spec == recognise(reference.state_dict()).spec
    assert_equal_logits(reference, recognised, side=64)


def test_the_head_may_be_a_linear_layer_alone(tmp_path):
    reference = trained_like(torchvision.models.resnet18(num_classes=4))
    alone = saved(reference.fc.state_dict(), tmp_path / "head.pt")
    assert recognise(backbone(reference), head=head_from(alone)).classes == 4


@pytest.mark.parametrize(
    ("weight", "bias", "named"),
    [
        ((512, 10), 10, "it is transposed: expected was (classes, 512)"),
        ((10, 2048), 10, "the backbone gives 512 features"),
        ((10, 512), 11, "(classes, 512) and (classes,) were expected"),
        ((10,), 10, "(classes, 512) and (classes,) were expected"),
    ],
)
def test_a_head_that_does_not_fit_is_explained(weight, bias, named):
    message = refusal(backbone(torchvision.models.resnet18()), head=(torch.zeros(weight), torch.zeros(bias)))
    assert f"--head-from has a weight {weight} and a bias ({bias},)" in message
    assert named in message


def test_heads_beside_the_classifier_are_left_out_by_a_flag():
    """A training's second task, or its early exits."""
    network = trained_like(cifar_resnet18(width=8))
    beside = {"rotation.weight": torch.ones(4, 64), "exit1.fc.weight": torch.ones(10, 8)}
    message = refusal(network.state_dict() | beside)
    assert "linear.weight (10, 64), rotation.weight (4, 64), exit1.fc.weight (10, 8)" in message
    assert "--head NAME" in message
    assert_equal_logits(network, recognise(network.state_dict() | beside, head_name="linear"), side=32)


def test_a_classifier_without_a_bias_may_be_one_of_cosines_which_is_said():
    tensors = cifar_resnet18(width=8).state_dict()
    assert "classifier" not in {assumption.key for assumption in recognise(tensors).assumptions}
    del tensors["linear.bias"]
    for flags in ({}, {"classifier": "linear"}):
        (found,) = (a for a in recognise(tensors, assumed=flags).assumptions if a.key == "classifier")
        assert "linear, which has no bias" in found.meaning
        assert "ArcFace" in found.meaning
        assert (found.settled_by is not None) == bool(flags)


def test_a_head_for_a_network_that_has_one_is_refused():
    head = (torch.zeros(10, 512), torch.zeros(10))
    message = refusal(torchvision.models.resnet18().state_dict(), head=head)
    assert "has a classifier of its own, fc for 1000 classes" in message
    assert "leave it out" in message


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"conv1.weight": torch.zeros(4, 3, 3, 3)}, "it holds none"),
        (
            {"a.weight": torch.zeros(4, 8), "a.bias": torch.zeros(4), "b.weight": torch.zeros(2, 4)},
            "2 two-dimensional weights: a.weight (4, 8), b.weight (2, 4)",
        ),
        ({"fc.weight": torch.zeros(4, 8), "fc.bias": torch.zeros(4, 1, 1)}, "there is fc.bias (4, 1, 1)"),
    ],
)
def test_what_is_no_classifier_is_refused(tensors, named, tmp_path):
    checkpoint = saved(tensors, tmp_path / "head.pt")
    assert named in refusal_of(CheckpointError, head_from, checkpoint)


@pytest.mark.parametrize(
    ("head", "assumed"),
    [
        (nn.Linear(512, 4), ("head", "direct")),
        (nn.Sequential(nn.Dropout(), nn.Linear(512, 4)), ("head", "dropout")),
    ],
)
def test_what_may_stand_before_a_classifier_of_another_name_is_said(head: nn.Module, assumed: tuple[str, str]):
    tensors = backbone(torchvision.models.resnet18())
    tensors |= {f"my_head.{name}": tensor for name, tensor in head.state_dict().items()}
    found = {assumption.key: assumption.value for assumption in recognise(tensors).assumptions}
    assert found.get(assumed[0]) == assumed[1]
    confirmed = recognise(tensors, assumed=dict([assumed])).assumptions
    assert [a.settled_by for a in confirmed if a.key == "head"] == [f"--assume head={assumed[1]}"]
