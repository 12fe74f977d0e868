"""What a TorchScript file's program tells is held against the recognised network, or taken."""

import warnings

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import assert_equal_logits
from tests.export.recognition.preact_resnets import BiasedWideNetwork, PlainReference, PreActNetwork
from tests.export.recognition.torchscript_files import recognised_in, recognised_of, saved
from tests.export.resnets import LeftRightResNet34, option_a_resnet, tiny_network, trained_like
from tests.refusals import refusal_of

HOWS = pytest.mark.parametrize("how", ["script", "trace"])


def resnet18() -> nn.Module:
    return trained_like(torchvision.models.resnet18(num_classes=5))


def thin(name: str, width: int = 8) -> nn.Module:
    return trained_like(timm.create_model(name, channels=(width,) * 4, num_classes=5))


class ScriptableOptionA(nn.Module):
    """Option A in the ways that people write it, behind a block's stride: zeros by padding, by zeros_like or by mul."""

    def __init__(self, zeros: str = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(ScriptableBlock(8, 8, 1, zeros))
        self.layer2 = nn.Sequential(ScriptableBlock(8, 16, 2, zeros))
        self.layer3 = nn.Sequential(ScriptableBlock(16, 32, 2, zeros))
        self.linear = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


class ScriptableBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, zeros: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.new = planes - channels
        self.stride = stride
        self.zeros = zeros

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            if self.zeros == "pad":
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
            elif self.zeros == "average":
                x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, self.new // 2, self.new // 2))
            else:
                x = F.avg_pool2d(x, 1, 2)
                x = torch.cat([x, torch.zeros_like(x) if self.zeros == "like" else x.mul(0)], 1)
        out += x
        return F.relu(out)


class Multiplied(nn.Linear):
    """A linear layer as traces before PyTorch 1.9 have it."""

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t())


AGREEING = {
    "addmm": (lambda: replaced(thin("resnet18"), "fc", Multiplied(8, 5)), "script trace"),
    "torchvision-resnet18": (resnet18, "script trace"),
    "torchvision-resnet50": (lambda: trained_like(torchvision.models.resnet50(num_classes=5)), "script"),
    "grouped": (lambda: thin("resnext50_32x4d", 16), "script trace"),
    "left-right": (lambda: trained_like(LeftRightResNet34((64, 128, 256, 512))), "script"),
    "squeeze": (lambda: thin("seresnet18"), "script trace"),
    "deep-stem": (lambda: thin("resnet26t"), "script trace"),
    "pre-activation": (lambda: thin("resnetv2_18d"), "script trace"),
    "pre-activation-raw": (
        lambda: trained_like(PreActNetwork((2, 1, 1, 2), (8, 16, 24, 32), bottleneck=True)),
        "trace",
    ),
    "wide": (lambda: trained_like(BiasedWideNetwork(10, 1)), "script trace"),
    "plain": (lambda: trained_like(PlainReference((8, 8, 16, 32))), "script trace"),
    "cifar": (tiny_network, "trace"),
    "option-a": (lambda: trained_like(option_a_resnet(8)), "trace"),
    "option-a-padded": (lambda: trained_like(ScriptableOptionA()), "script trace"),
}


@pytest.mark.parametrize(("case", "how"), [(case, how) for case, (_, hows) in AGREEING.items() for how in hows.split()])
def test_a_program_that_agrees_settles_everything(tmp_path, case, how):
    network = AGREEING[case][0]()
    checkpoint = read_checkpoint(saved(network, tmp_path / "model.pt", how))
    assert checkpoint.program is not None
    recognised = recognised_of(checkpoint)
    assert "which was read and not run" in recognised.evidence[-1]
    assert recognised.assumptions == ()
    assert_equal_logits(network, recognised, side=64)


def test_transformers_own_network_agrees(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", num_labels=4
    )
    network = trained_like(transformers.ResNetForImageClassification(config))
    assert_equal_logits(network, recognised_in(saved(network, tmp_path / "model.pt", "trace")), side=64)


@HOWS
def test_batchnorms_eps_is_taken(tmp_path, how):
    network = thin("resnet18")
    for layer in network.modules():
        layer.eps = 1e-2
    recognised = recognised_in(saved(network, tmp_path / "model.pt", how))
    assert "BatchNorm's eps of 0.01 taken from the checkpoint's program" in recognised.evidence
    assert_equal_logits(network, recognised, side=64)


def dilated(network: nn.Module) -> nn.Module:
    for layer in (network.layer4[0].conv1, network.layer4[1].conv2):
        layer.dilation = layer.padding = (2, 2)
    return network


def stride_on_the_1x1(_network: nn.Module) -> nn.Module:
    bottleneck = torchvision.models.resnet.Bottleneck
    network = torchvision.models.ResNet(bottleneck, [1, 1, 1, 1], 5, width_per_group=8)
    network.layer2[0].conv1.stride, network.layer2[0].conv2.stride = (2, 2), (1, 1)
    return network


def replaced(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    network.set_submodule(name, layer)
    return network


def with_pool(network: nn.Module, pool: nn.Module) -> nn.Module:
    return replaced(network, "global_pool", nn.Sequential(pool, nn.Flatten()))


class Scaled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) * 2.0


CONTRADICTING = {
    "dilation": (dilated, "layer4.0.conv1 has dilation 2, where that network has dilation 1"),
    "stride": (stride_on_the_1x1, "layer2.0.conv1 has stride 2, where that network has stride 1"),
    "activation": (
        lambda n: replaced(n, "act1", nn.LeakyReLU(0.1)),
        "leaky_relu (negative_slope 0.1) comes at act1 behind bn1, where that network has relu",
    ),
    "inner-activation": (lambda n: replaced(n, "layer3.1.act1", nn.SiLU(inplace=True)), "silu comes at layer3.1.act1"),
    "no-max-pool": (lambda n: replaced(n, "maxpool", nn.Identity()), "where that network has max_pool2d"),
    "ceil-mode": (lambda n: replaced(n, "maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "ceil_mode True"),
    "average": (lambda n: replaced(n, "maxpool", nn.AvgPool2d(3, 2, 1)), "avg_pool2d (count_include_pad True"),
    "maximum": (
        lambda n: replaced(n, "global_pool", nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())),
        "adaptive_max_pool2d",
    ),
    "extra-layer": (
        lambda n: replaced(n, "layer2", nn.Sequential(*n.layer2, nn.Hardswish())),
        "hardswish comes at layer2.2 behind relu behind layer2.1.bn2, where that network has no such step",
    ),
    "padding-mode": (
        lambda n: replaced(n, "layer1.0.conv1", nn.Conv2d(64, 8, 3, padding=1, padding_mode="reflect", bias=False)),
        "pad (arguments (1, 1, 1, 1, 'reflect'",
    ),
    "padded-pictures": (lambda n: nn.Sequential(nn.ReflectionPad2d(2), n), "behind the pictures"),
    "sigmoid": (lambda n: nn.Sequential(n, nn.Sigmoid()), "sigmoid"),
    "scaled": (Scaled, "mul "),
}


@HOWS
@pytest.mark.parametrize("case", CONTRADICTING)
def test_a_program_that_contradicts_is_refused_by_the_layer(tmp_path, case, how):
    change, said = CONTRADICTING[case]
    path = saved(change(thin("resnet18")), tmp_path / "model.pt", how)
    message = refusal_of(ArchitectureError, recognised_in, path)
    assert said in message
    assert "--factory package.module:function" in message


@pytest.mark.parametrize(("zeros", "said"), [("average", "avg_pool2d"), ("like", "before 0"), ("mul", "before 0")])
def test_another_shortcut_without_weights_is_refused(tmp_path, zeros, said):
    assert said in refusal_of(
        ArchitectureError, recognised_in, saved(ScriptableOptionA(zeros), tmp_path / "model.pt", "script")
    )


def test_a_program_traced_in_training_is_refused_with_the_cure(tmp_path):
    path = tmp_path / "model.pt"
    torch_trace = torch.jit.trace
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_trace(thin("resnet18").train(), torch.zeros(2, 3, 64, 64)).save(str(path))
    with pytest.raises(ArchitectureError, match=r"bn1 normalises by the pictures.*after model\.eval\(\)"):
        recognised_in(path)


@HOWS
@pytest.mark.parametrize(
    ("pool", "size"), [(nn.AvgPool2d(7), 224), (nn.AvgPool2d(7, stride=1), 224), (nn.AvgPool2d(2), 64)]
)
def test_a_pool_of_a_fixed_size_tells_the_input_size(tmp_path, how, pool, size):
    network = with_pool(thin("resnet18"), pool)
    recognised = recognised_in(saved(network, tmp_path / "model.pt", how, side=size))
    assert recognised.implied_input_size == (size, size)
    assert_equal_logits(network, recognised, side=size)


def test_a_traced_functional_pool_tells_the_input_size(tmp_path):
    path = saved(trained_like(option_a_resnet(8)), tmp_path / "model.pt", "trace", side=32)
    assert recognised_in(path).implied_input_size == (32, 32)


def test_a_softmax_at_the_end_is_left_to_the_server(tmp_path):
    network = thin("resnet18")
    recognised = recognised_in(saved(nn.Sequential(network, nn.Softmax(1)), tmp_path / "model.pt", "script"))
    assert any("softmax at the end of its program is left out" in sentence for sentence in recognised.evidence)
    assert_equal_logits(network, recognised, side=64)


@pytest.mark.parametrize("raw", [True, False])
def test_a_program_tells_namings_apart_that_the_same_tensors_fit(tmp_path, raw):
    network = trained_like(
        PreActNetwork((1,) * 4, (8,) * 4, bottleneck=False, raw=raw, final_norm="bn", classifier="linear")
    )
    with pytest.raises(ArchitectureError, match="fit 2 namings that compute differently"):
        recognise(network.state_dict())
    recognised = recognised_in(saved(network, tmp_path / "model.pt", "trace"))
    assert recognised.naming == ("preact-bn-raw" if raw else "preact-bn")
    assert recognised.assumptions == ()
    assert_equal_logits(network, recognised, side=64)


@pytest.mark.parametrize("how", ["script", "trace", "pickle"])
def test_what_one_choice_would_mend_is_named_and_mends_it(tmp_path, how):
    """A bottleneck that strides on its 1x1 convolution, as Caffe's did."""
    network = trained_like(torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5))
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    path = tmp_path / "model.pt"
    if how == "pickle":
        torch.save(network, path)
        checkpoint = read_checkpoint(path)
    else:
        checkpoint = read_checkpoint(saved(network, path, how))
    given = {"layer_settings": checkpoint.layer_settings, "program": checkpoint.program}
    with pytest.raises(ArchitectureError, match=r"layer2\.0\.conv1.*or add --assume stride=conv1, which is"):
        recognise(checkpoint.tensors, **given)
    assert_equal_logits(network, recognise(checkpoint.tensors, **given, assumed={"stride": "conv1"}), side=64)
