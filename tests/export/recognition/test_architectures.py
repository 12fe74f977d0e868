"""Recognition against torchvision and against ResNets as people write them: the same spec, names and logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architecture_names import name_of
from fuseline.export.recognition.architectures import recognise
from fuseline.export.recognition.naming.naming_schemes import SCHEMES, NamingScheme
from tests.export.recognition.equal_networks import assert_equal_logits, assert_same_network
from tests.export.recognition.layer_settings import settings_of
from tests.export.resnets import (
    CifarBasic,
    CifarBottleneck,
    CifarResNet,
    HandWrittenResNet34,
    LeftRightResNet34,
    cifar_resnet18,
    on_meta,
    option_a_resnet,
    trained_like,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"

TORCHVISION_NAMES = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_computes_what_torchvision_computes(name):
    reference = trained_like(getattr(torchvision.models, name)(num_classes=13))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == f"torchvision {name}"
    assert recognised.spec.classes == 13
    assert recognised.spec.default_input_size == 224
    assert_equal_logits(reference, recognised, side=64)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_names_every_torchvision_resnet(name):
    spec = recognise(on_meta(getattr(torchvision.models, name))).spec
    assert name_of(spec) == f"torchvision {name}"
    assert (spec.stem, spec.classes, spec.in_channels) == ("7x7-maxpool", 1000, 3)


def test_computes_what_the_cifar_resnet18_computes():
    reference = trained_like(cifar_resnet18())
    assert sum(parameter.numel() for parameter in reference.parameters()) == 11_173_962
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == "CIFAR ResNet-18"
    assert recognised.spec.default_input_size == 32
    assert sum(parameter.numel() for parameter in recognised.module.parameters()) == 11_173_962
    assert_equal_logits(reference, recognised, side=32)


def test_computes_what_the_cifar_bottleneck_resnet_computes():
    reference = trained_like(CifarResNet(CifarBottleneck, (3, 4, 6, 3), [16, 32, 64, 128]))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == "CIFAR ResNet-50 (widths 16-64-128-256-512)"
    assert_equal_logits(reference, recognised, side=32)
    assert recognise(on_meta(CifarResNet, CifarBottleneck, (3, 4, 6, 3), [64, 128, 256, 512])).architecture == (
        "CIFAR ResNet-50"
    )


def test_computes_what_option_a_computes():
    reference = trained_like(option_a_resnet(20))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == "CIFAR ResNet-20 (option A)"
    assert recognised.spec.shortcut == "option-a"
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_names_the_resnets_of_6n_plus_2_layers(depth):
    assert recognise(on_meta(option_a_resnet, depth)).architecture == f"CIFAR ResNet-{depth} (option A)"
    projected = on_meta(CifarResNet, CifarBasic, ((depth - 2) // 6,) * 3, [16, 32, 64])
    assert recognise(projected).architecture == f"CIFAR ResNet-{depth} (option B)"


@pytest.mark.parametrize(("bias", "stem_in_sequential"), [(False, True), (True, False)])
def test_computes_what_a_hand_written_resnet34_with_shortcut_computes(bias, stem_in_sequential):
    reference = trained_like(HandWrittenResNet34(bias, stem_in_sequential))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == ("ResNet-34 (convolution biases)" if bias else "torchvision resnet34")
    assert recognised.layer_names["layer2.0.downsample.0"] == "layer2.0.shortcut.0"
    assert_equal_logits(reference, recognised, side=64)


@pytest.mark.parametrize(
    ("planes", "name"),
    [
        ((64, 128, 256, 512), "ResNet-34 (projection in stage 1)"),
        ((128, 256, 512, 512), "ResNet-34 (widths 64-128-256-512-512)"),
    ],
)
def test_computes_what_a_resnet34_of_left_and_right_computes(planes, name):
    reference = trained_like(LeftRightResNet34(planes))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == name
    assert recognised.layer_names["layer3.2.conv2"] == "layer3.2.left.3"
    assert_equal_logits(reference, recognised, side=64)


def test_narrow_and_grey_variants_are_told_from_their_shapes():
    reference = trained_like(cifar_resnet18(width=6, classes=4, in_channels=1))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == "CIFAR ResNet-18 (widths 6-6-12-24-48, 1 input channel)"
    assert (recognised.spec.classes, recognised.spec.in_channels) == (4, 1)
    assert_equal_logits(reference, recognised, side=32, channels=1)


def test_an_unusual_depth_is_described():
    reference = trained_like(CifarResNet(CifarBasic, (1, 2, 1, 3), [64, 128, 256, 512]))
    recognised = recognise(reference.state_dict())
    assert recognised.architecture == "CIFAR ResNet of basic blocks 1-2-1-3"
    assert_equal_logits(reference, recognised, side=32)


RESIDUAL = [scheme for scheme in SCHEMES if scheme.family == "residual"]


@pytest.mark.parametrize("scheme", RESIDUAL, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.resnet50])
def test_every_row_of_names_leads_to_the_same_network(scheme, make):
    tensors = on_meta(make)
    renamed = {in_scheme(scheme, name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    assert recognise(renamed).spec == recognise(tensors).spec


@pytest.mark.parametrize("scheme", RESIDUAL, ids=lambda scheme: scheme.name)
def test_every_row_of_names_puts_each_tensor_in_its_place(scheme):
    reference = trained_like(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 3))
    tensors = {in_scheme(scheme, name): tensor for name, tensor in reference.state_dict().items()}
    recognised = recognise(tensors, naming=scheme.name)
    assert recognised.naming == scheme.name
    assert recognised.layer_names == {
        name: in_scheme(scheme, f"{name}.weight").removesuffix(".weight")
        for name, child in reference.named_modules()
        if isinstance(child, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
    }
    assert recognised.evidence[0] == f"names of {scheme.description} (62 of 62 tensors placed)"
    assert_equal_logits(reference, recognised, side=32)
    # torchvision's names are also timm's; of rows that lead to the same network the first is taken.
    unforced = recognise(tensors)
    assert unforced.naming == ("torchvision" if scheme.name == "timm" else scheme.name)
    assert_same_network(recognised, unforced)


def in_scheme(scheme: NamingScheme, name: str) -> str:
    """A tensor of torchvision's names under the names of `scheme`."""
    parts = name.split(".")
    leaf = parts.pop()
    outer = {"conv1": scheme.stem[0], "bn1": scheme.stem[1], "fc": scheme.classifier}
    if parts[0] in outer:
        return f"{outer[parts[0]]}.{leaf}"
    prefix = scheme.block.format(stage=int(parts[0][5:]) - 1 + scheme.first_stage, block=parts[1])
    if parts[2] == "downsample":
        return f"{prefix}.{scheme.shortcut[int(parts[3])]}.{leaf}"
    return f"{prefix}.{scheme.convs[int(parts[2][-1]) - 1][parts[2].startswith('bn')]}.{leaf}"


def test_rows_have_names_of_their_own():
    names = [scheme.name for scheme in SCHEMES]
    assert len(set(names)) == len(names)
    assert all(scheme.description for scheme in SCHEMES)


def test_the_evidence_says_what_told_each_part():
    recognised = recognise(on_meta(torchvision.models.resnext50_32x4d))
    assert recognised.evidence == (
        "names of torchvision (267 of 267 tensors placed)",
        "bottleneck blocks (1x1, 3x3 and 1x1 convolutions), 3-4-6-3",
        "7x7 first convolution",
        "3x3 convolutions of 32 groups: their weights have 1/32 of the input channels",
    )
    assert {a.key: (a.value, a.alternatives) for a in recognised.assumptions} == {
        "stride": ("conv2", ("conv1",)),
        "first-stage-stride": ("1", ("2",)),
        "stem-stride": ("2", ("1",)),
        "pool": ("max3", ("none", "max2")),
        "activation": ("relu", ("leaky-relu-0.1", "gelu", "silu", "elu", "tanh")),
        "eps": ("1e-05", ("0.001",)),
    }


def test_what_a_bare_state_dict_leaves_open_is_said_with_the_way_out():
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    tensors = network.state_dict()
    lines = {a.key: a.line for a in recognise(tensors).assumptions}
    assert all(f"--assume {key}=VALUE" in line for key, line in lines.items())
    assert "activations are relu; it could also be leaky-relu-0.1" in lines["activation"]
    whole = {"": {"classes": ["torchvision.models.resnet.ResNet"]}} | settings_of(network)
    assert recognise(tensors, layer_settings=whole).assumptions == ()


def test_what_a_small_network_leaves_open_is_said():
    assumed = {a.key: a for a in recognise(on_meta(option_a_resnet, 20)).assumptions}
    assert (assumed["stem-stride"].value, assumed["pool"].value) == ("1", "none")
    assert "half of their zero channels before and half after" in assumed["shortcut"].meaning
    assert assumed["shortcut"].alternatives == (
        "zeros-after",
        "average-zeros-around",
        "average-zeros-after",
        "none",
    )


@pytest.mark.parametrize("place", [0, 1])
def test_a_classifier_behind_dropout_in_a_sequential_is_found(place):
    reference = torchvision.models.resnet18(num_classes=3)
    reference.fc = nn.Sequential(*[nn.Dropout(0.5)] * place, nn.Linear(512, 3))
    recognised = recognise(trained_like(reference).state_dict())
    assert recognised.layer_names["fc"] == f"fc.{place}"
    assert f"the classifier stands in a Sequential, as fc.{place}" in recognised.assumptions[-1].meaning
    assert_equal_logits(reference, recognised, side=64)


def test_the_trained_resnet20_is_right_as_often_as_measured():
    """832 of these 1000 pictures, as eager PyTorch has them."""
    path, folder = SHARED / "checkpoints" / "resnet20-12fca82f.th", SHARED / "cifar10-test"
    if not path.exists():
        pytest.skip("shared/data is not beside this checkout")
    recognised = recognise(read_checkpoint(path).tensors)
    assert recognised.architecture == "CIFAR ResNet-20 (option A)"
    files = [(label, file) for label, d in enumerate(sorted(folder.iterdir())) for file in sorted(d.glob("*.jpg"))]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for _, file in files])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        logits = recognised.module((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    right = int((logits.argmax(1) == torch.tensor([label for label, _ in files])).sum())
    assert (right, len(files)) == (832, 1000)


@pytest.mark.parametrize(
    "make",
    [lambda: option_a_resnet(20), lambda: CifarResNet(CifarBottleneck, (1, 1, 1, 1), [8, 16, 32, 64])],
    ids=["option-a", "bottleneck"],
)
def test_exports_with_a_dynamic_batch(make):
    module = recognise(trained_like(make()).state_dict()).module
    program = torch.export.export(module, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("n")},))
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), module(images))


def test_weights_are_shared_not_copied():
    tensors = trained_like(option_a_resnet(20)).state_dict()
    module = recognise(tensors).module
    state = module.state_dict()
    assert state["fc.weight"].data_ptr() == tensors["linear.weight"].data_ptr()
    for name in ("conv1.weight", "bn1.running_var", "layer2.0.bn1.bias"):
        assert state[name].data_ptr() == tensors[name].data_ptr()
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_callers_parameters_keep_their_gradients():
    network = option_a_resnet(20)
    recognise(dict(network.named_parameters()) | dict(network.named_buffers()))
    assert all(parameter.requires_grad for parameter in network.parameters())
