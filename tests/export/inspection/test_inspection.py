import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fuseline.export.inspection.inspected import DEAD_GAIN
from fuseline.export.inspection.network_inspection import inspect_checkpoint, inspect_network
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import ArchitectureError, InputError
from tests.export.inspection.inspections import layer, look, trained, zeros_of
from tests.export.resnets import cifar_resnet18, on_meta, tiny_network, trained_like


def test_the_cifar_resnet18_has_11173962_parameters_1728_of_them_in_conv1(tmp_path: Path) -> None:
    torch.save(cifar_resnet18().state_dict(), tmp_path / "r18.pt")
    found = inspect_checkpoint(tmp_path / "r18.pt")
    assert (found.parameters, found.classes, found.input_shape) == (11_173_962, 10, (3, 32, 32))
    first = found.layers[0]
    assert (first.name, first.parameters, first.multiply_adds) == ("conv1", 1_728, 1_728 * 32 * 32)
    assert (first.kernel, first.stride, first.output_shape) == ((3, 3), (1, 1), (64, 32, 32))
    in_layers = sum(one.parameters for one in found.layers)
    in_batchnorms = sum(norm.parameters for norm in found.batchnorms)
    assert (in_layers + in_batchnorms, found.other_parameters) == (11_173_962, 0)


def test_resnet50_has_25557032_parameters_and_4_09_g_multiply_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.export.inspection.network_inspection.MAX_MULTIPLY_ADDS", 0)
    network = recognise(zeros_of(on_meta(torchvision.models.resnet50)))
    found = inspect_network(network, file="r50.pth", sha256="0" * 64, notes=("read",))
    assert found.parameters == 25_557_032
    assert round(found.multiply_adds / 1e9, 2) == 4.09
    assert found.architecture == network.architecture
    assert found.evidence == network.evidence
    assert found.evidence, "it says why"
    assert found.unseen == tuple(assumption.line for assumption in network.assumptions)
    assert found.notes == ("read",)


def test_layers_are_named_as_in_the_checkpoint(tiny_checkpoint: Path) -> None:
    found = inspect_checkpoint(tiny_checkpoint)
    names = [one.name for one in found.layers]
    assert "layer4.0.shortcut.0" in names
    assert [norm.folds_into for norm in found.batchnorms if norm.name == "layer4.0.shortcut.1"] == [
        "layer4.0.shortcut.0"
    ]
    assert {facts.layer for facts in found.fp16.layers} <= set(names)


def test_another_input_size(tiny_checkpoint: Path) -> None:
    found = inspect_checkpoint(tiny_checkpoint, (48, 64))
    assert found.input_shape == (3, 48, 64)
    assert found.layers[0].output_shape == (8, 48, 64)
    assert found.layers[0].multiply_adds == 3 * 8 * 9 * 48 * 64


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 11), nn.Flatten(), nn.Linear(4 * 22 * 22, 10)))
    for size in ((8, 8), (40, 40)):
        with pytest.raises(InputError, match=rf"no picture of {size[0]} x {size[1]} pixels.* usual size is 32 x 32"):
            inspect_network(network, file="x", sha256="", notes=(), input_size=size)


def test_a_network_that_cannot_be_traced_is_not_blamed_on_its_size() -> None:
    class Branches(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(ArchitectureError, match="must not branch"):
        look(Branches())


def test_the_gain_and_statistics_of_a_batchnorm() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.25), nn.Flatten(), nn.Linear(4 * 900, 10))
    norm = module[1]
    norm.weight.data = torch.tensor([3.0, -1.0, 0.0, 2.0])
    norm.bias.data = torch.tensor([0.5, 0.0, -4.0, 1.0])
    norm.running_mean = torch.tensor([-7.0, 0.0, 1.0, 2.0])
    norm.running_var = torch.tensor([2.0, 0.0, 3.75, 0.75])
    (facts,) = look(module).batchnorms
    # gamma / sqrt(var + 0.25): 3 / 1.5, -1 / 0.5, 0, 2 / 1.
    assert (facts.gain.smallest, facts.gain.median, facts.gain.largest) == pytest.approx((0.0, 2.0, 2.0))
    assert facts.dead_channels == 1
    assert (facts.running_mean.smallest, facts.running_mean.largest) == (-7.0, 2.0)
    assert (facts.running_variance.smallest, facts.running_variance.largest) == (0.0, 3.75)
    assert facts.gamma is not None
    assert (facts.gamma.smallest, facts.gamma.largest) == (-1.0, 3.0)
    assert (facts.folds_into, facts.why_not, facts.parameters) == ("0", None, 8)


def test_a_channel_is_dead_below_the_stated_gain() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, eps=0), nn.Flatten(), nn.Linear(3 * 900, 10))
    module[1].weight.data = torch.tensor([DEAD_GAIN * 0.99, -DEAD_GAIN * 0.99, DEAD_GAIN * 1.01])
    assert look(module).batchnorms[0].dead_channels == 2


class Consumers(nn.Module):
    """BatchNorms that fold, and every way in which one doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.pre = nn.BatchNorm2d(4)
        self.two_readers = nn.Conv2d(4, 4, 3, padding=1)
        self.reads = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.once, self.again = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.folds = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.fc, self.fc_norm = nn.Linear(4, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        x = self.pre(F.relu(self.first(x)))
        both = self.two_readers(x)
        x = self.reads(both) + both
        x = self.again(self.shared(self.once(self.shared(x))))
        x = self.norm(self.folds(x))
        return self.fc_norm(self.fc(x.mean((2, 3))))


def test_a_batchnorm_folds_into_the_layer_whose_output_it_alone_reads() -> None:
    found = look(Consumers())
    into = {norm.name: norm.folds_into for norm in found.batchnorms}
    assert into == {"pre": None, "reads": None, "once": None, "again": None, "norm": "folds", "fc_norm": "fc"}
    assert all((norm.why_not is None) == (norm.folds_into is not None) for norm in found.batchnorms)
    assert next(norm for norm in found.batchnorms if norm.name == "norm").gamma is None
    assert [one.parameters for one in found.layers if one.name == "shared"] == [4 * 4 * 9 + 4, 0], "counted once"
    assert found.other_parameters == 0


def test_every_parameter_is_counted_also_those_of_no_layer() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.scale, self.unused = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(7))
            self.fc = nn.Linear(4, 10)

        def forward(self, x):
            return self.fc((F.conv2d(x, self.weight / self.weight.std()) * self.scale).mean((2, 3)))

    found = look(Scaled())
    assert found.layers[0].parameters == 4 * 3 * 9, "a weight that is computed has the parameters it is computed from"
    assert found.parameters == 4 * 3 * 9 + 4 + 7 + 50
    assert found.other_parameters == 4 + 7
    assert found.filters is None, "weights that are computed aren't drawn"
    assert found.fp16.layers[0].largest_weight is None


def test_squeeze_and_excitation_and_deep_stems_are_looked_into() -> None:
    found = look(timm.create_model("seresnet18", num_classes=10), side=64)
    gate = layer(found.layers, "layer1.0.se.fc1")
    assert gate.receptive_field_pixels is None
    assert layer(found.layers, "layer2.0.conv1").sees_whole_input
    assert found.other_parameters == 0


def test_linear_layers_on_maps_count_every_position() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point, self.fc = nn.Linear(3, 4), nn.Linear(4, 10)

        def forward(self, x):
            return self.fc(self.point(x.permute(0, 2, 3, 1)).mean((1, 2)))

    found = look(Last())
    assert layer(found.layers, "point").multiply_adds == 3 * 4 * 32 * 32
    assert layer(found.layers, "point").receptive_field_pixels == (1, 1)


def test_fp16_weights_are_the_folded_ones() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0), nn.Flatten(), nn.Linear(2048, 10))
    module[0].weight.data = torch.tensor([[1.0, 0.5, 2.0], [2.0**-13, 2.0**-12, 2.0**-11]]).reshape(2, 3, 1, 1)
    module[1].weight.data = torch.tensor([50_000.0, 2.0**-13])
    conv = look(module).fp16.layers[0]
    assert conv.largest_weight == 100_000
    assert (conv.subnormal_share, conv.zero_share) == pytest.approx((1 / 6, 2 / 6)), "2**-26 and 2**-25 are lost"
    assert any("a weight of 1e+05 is beyond" in risk for risk in conv.risks)


def test_fp16_outputs_are_those_behind_the_batchnorm_on_generated_images() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0), nn.Flatten(), nn.Linear(2048, 10))
    module[0].weight.data = torch.full((2, 3, 1, 1), 1e5)
    module[1].running_var = torch.full((2,), 1e10)
    found = look(module)
    conv = found.fp16.layers[0]
    assert conv.largest_activation is not None
    assert 3 * 2.64 * 0.99 < conv.largest_activation < 20, "the convolution's own 1e5 are never written"
    assert conv.activation_margin == pytest.approx(65504 / conv.largest_activation)
    assert found.fp16.images is not None
    assert "generated" not in found.fp16.images
    assert "normal noise" in found.fp16.images
    assert not conv.risks


def test_the_largest_value_may_be_a_sum_of_branches() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 10)

        def forward(self, x):
            x = self.conv(x)
            return self.fc((x + x + 40_000).mean((2, 3)) * 1e-4)

    found = look(Sum())
    assert found.fp16.largest_value_at == "add"
    assert found.fp16.largest_value is not None
    assert found.fp16.largest_value > 40_000


def test_outputs_that_are_not_finite_are_a_risk_and_json_stays_json() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4096, 10))
    module[0].weight.data.fill_(3e38)
    found = look(module)
    assert any("not finite" in risk for risk in found.fp16.layers[0].risks)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["fp16"]["layers"][0]["largest_activation"] is None


def test_no_image_is_run_where_that_would_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.export.inspection.network_inspection.MAX_MULTIPLY_ADDS", 1e6)
    found = look(tiny_network())
    assert found.fp16.images is None
    assert "smaller --input-size" in (found.fp16.why_no_images or "")
    assert all(facts.largest_activation is None for facts in found.fp16.layers)
    assert all(facts.largest_weight for facts in found.fp16.layers)


def test_a_look_leaves_the_network_as_it_is() -> None:
    module = trained_like(tiny_network())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    look(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
