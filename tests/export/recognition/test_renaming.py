"""Networks under another scheme's names: what can be renamed loads into its own code, and what can't is said."""

import pytest
import timm
import torchvision
from torch.fx.experimental.optimization import fuse

from fuseline.export.recognition.architectures import names_in, recognise, tensors_in
from fuseline.export.recognition.naming.naming_schemes import SCHEMES, scheme_named
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import assert_equal_logits, assert_same_network
from tests.export.recognition.hand_written import TinyResNet8, TutorialResNet
from tests.export.recognition.preact_resnets import BiasedWideNetwork, PlainReference, PreActNetwork, WideNetwork
from tests.export.resnets import HandWrittenResNet34, cifar_resnet18, on_meta, option_a_resnet, trained_like
from tests.refusals import refusal_of


def test_a_hand_written_resnet34_goes_to_torchvision_and_back():
    reference = trained_like(HandWrittenResNet34(bias=False))
    recognised = recognise(reference.state_dict())
    renamed = tensors_in(scheme_named("torchvision"), recognised)
    theirs = torchvision.models.resnet34(num_classes=5).eval()
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert_equal_logits(theirs, recognised, side=64)
    back = tensors_in(scheme_named("shortcut"), recognise(renamed))
    assert set(back) == {name for name in reference.state_dict() if not name.endswith("num_batches_tracked")}


def test_a_pre_activation_network_loads_into_timm():
    reference = trained_like(timm.create_model("resnetv2_18", channels=(8, 16, 24, 32), num_classes=5, stem_chs=8))
    recognised = recognise(reference.state_dict())
    renamed = tensors_in(scheme_named("timm-v2"), recognised)
    assert renamed["head.fc.weight"].shape == (5, 32, 1, 1)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in reference.state_dict().items() if "num_batches" not in name
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=3),
        lambda: cifar_resnet18(width=4),
        lambda: option_a_resnet(20),
        lambda: timm.create_model("seresnet18", num_classes=3, channels=(8, 8, 8, 8)),
        lambda: PreActNetwork((1, 1, 1), (4, 8, 16)),
        lambda: WideNetwork(10, 1),
        lambda: BiasedWideNetwork(10, 2),
        lambda: PlainReference((4, 8)),
    ],
    ids=["resnet18", "cifar", "option-a", "seresnet", "preact", "wide", "wide-shortcut", "plain"],
)
def test_every_scheme_that_has_names_leads_back_to_the_same_network(make):
    recognised = recognise(trained_like(make()).state_dict())
    reached = []
    for scheme in SCHEMES:
        try:
            names = names_in(scheme, recognised)
        except ArchitectureError:
            continue
        reached.append(scheme.name)
        assert set(names) == {n for n in recognised.module.state_dict() if not n.endswith("num_batches_tracked")}
        assert_same_network(recognised, recognise(tensors_in(scheme, recognised), naming=scheme.name))
    assert recognised.naming in reached


@pytest.mark.parametrize(
    ("tensors", "scheme", "named"),
    [
        (lambda: on_meta(timm.create_model, "seresnet18"), "torchvision", "it has no squeeze-and-excitation"),
        (lambda: on_meta(timm.create_model, "resnet50d"), "torchvision", "it has no stem of three convolutions"),
        (lambda: on_meta(timm.create_model, "resnet50d"), "huggingface", "it has no average pools"),
        (lambda: on_meta(option_a_resnet, 20), "timm", "parameter-free shortcuts (option A)"),
        (lambda: on_meta(cifar_resnet18), "torchvision", "its first convolution is 7x7"),
        (lambda: on_meta(torchvision.models.resnet18), "cifar", "its first convolution is 3x3"),
        (lambda: on_meta(torchvision.models.resnext50_32x4d), "huggingface", "it has no groups"),
        (lambda: on_meta(HandWrittenResNet34, bias=True), "torchvision", "its convolutions have no biases"),
        (lambda: on_meta(torchvision.models.resnet18), "preact", "for pre-activation networks, this is a residual one"),
        (lambda: on_meta(WideNetwork, 10, 2), "cifar", "for residual networks, this is a pre-activation one"),
        (lambda: on_meta(WideNetwork, 10, 2), "preact", "it ends otherwise after the last block"),
        (lambda: on_meta(WideNetwork, 10, 2), "preresnet", "its projections take the raw input"),
        (lambda: on_meta(BiasedWideNetwork, 10, 2), "wide", "its blocks stride on another convolution"),
        (lambda: fuse(cifar_resnet18(width=4).eval()).state_dict(), "cifar", "a BatchNorm follows each of its"),
        (lambda: on_meta(TinyResNet8), "cifar", "a BatchNorm follows each of its"),
        (lambda: on_meta(TutorialResNet), "cifar", "its projections are 1x1"),
        (lambda: on_meta(PlainReference, (4, 8)), "torchvision", "for residual networks, this is a plain one"),
    ],
)
def test_what_a_scheme_has_no_name_for_is_said(tensors, scheme, named):
    message = refusal_of(ArchitectureError, names_in, scheme_named(scheme), recognise(tensors()))
    assert f"has no names in the {scheme} naming" in message
    assert named in message
