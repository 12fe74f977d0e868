"""Tensors that are no ResNet, or not exactly one: each is refused by name, with the nearest architecture."""

import random

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from tests.export.recognition.equal_networks import assert_equal_logits, refusal
from tests.export.recognition.preact_resnets import BiasedWideNetwork, PlainReference
from tests.export.resnets import HandWrittenResNet34, cifar_resnet18, on_meta, trained_like

RESNET18 = on_meta(torchvision.models.resnet18)
RESNET18_WEIGHTS = [name for name in RESNET18 if not name.endswith("num_batches_tracked")]


def test_each_missing_tensor_is_named_with_the_nearest_architecture():
    for name in RESNET18_WEIGHTS[::3]:
        message = refusal({other: tensor for other, tensor in RESNET18.items() if other != name})
        shape = (1000, *RESNET18[name].shape[1:]) if name.startswith("fc") else tuple(RESNET18[name].shape)
        assert f"missing: {name} {shape}." in message
        assert "nearest: torchvision resnet18" in message


def test_a_misshapen_tensor_is_named_with_both_shapes():
    assert len(RESNET18_WEIGHTS[:-2:3]) == 34
    for name in RESNET18_WEIGHTS[:-2:3]:
        shape = tuple(RESNET18[name].shape)
        wrong = (shape[0] + 1, *shape[1:])
        message = refusal(RESNET18 | {name: torch.empty(wrong, device="meta")})
        assert f"misshapen: {name} is {wrong}, expected {shape}." in message
        assert "nearest: torchvision resnet18" in message


def test_a_classifier_that_contradicts_itself_is_refused():
    assert "misshapen: fc.bias is (7,), expected (1000,)" in refusal(
        RESNET18 | {"fc.bias": torch.empty(7, device="meta")}
    )


def test_each_left_over_tensor_is_named():
    extra = {"layer1.0.conv3.weight": torch.ones(2, 2), "aux.weight": torch.ones(3)}
    message = refusal(RESNET18 | extra)
    assert "left over: layer1.0.conv3.weight (2, 2), aux.weight (3,)." in message
    assert "nearest: torchvision resnet18" in message


def test_a_missing_tensor_goes_by_the_checkpoints_own_name():
    tensors = on_meta(HandWrittenResNet34, bias=True)
    del tensors["layer3.0.shortcut.1.running_mean"]
    assert "missing: layer3.0.shortcut.1.running_mean (256,)." in refusal(tensors)


def test_missing_shortcuts_of_an_imagenet_resnet_are_not_taken_for_option_a():
    message = refusal({name: tensor for name, tensor in RESNET18.items() if "downsample" not in name})
    assert "missing: layer2.0.downsample.0.weight (128, 64, 1, 1)" in message
    assert "and 9 more" in message


@pytest.mark.parametrize(
    ("gone", "named"),
    [("layer3.", "layer3.0"), ("layer1.0.", "layer1.0"), ("layer2.0.", "layer2.0")],
)
def test_a_missing_stage_or_block_is_named(gone, named):
    assert f"begins with {named}," in refusal(
        {name: tensor for name, tensor in RESNET18.items() if not name.startswith(gone)}
    )


def test_an_unknown_stem_is_misshapen():
    message = refusal(RESNET18 | {"conv1.weight": torch.empty(64, 3, 5, 5, device="meta")})
    assert "conv1.weight is (64, 3, 5, 5), expected (64, 3, 7, 7)" in message


def test_integer_weights_are_refused():
    tensors = recognisable() | {"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3, dtype=torch.int8)}
    assert "layer1.0.conv1.weight is torch.int8" in refusal(tensors)


def recognisable() -> dict[str, Tensor]:
    return dict(cifar_resnet18(width=4).state_dict())


@pytest.mark.parametrize("shape", [(), (0,), (0, 4, 3, 3), (4,) * 9])
def test_absurd_shapes_are_misshapen(shape):
    for name in ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight"):
        assert f"{name} is {shape}, expected" in refusal(recognisable() | {name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1] * 4, 3, groups=4, width_per_group=2
        ),
        lambda: timm.create_model("seresnext26t_32x4d", num_classes=3),
        lambda: timm.create_model("resnetv2_18d", num_classes=3),
        lambda: BiasedWideNetwork(10, 2),
        lambda: PlainReference((4, 4, 8), stem=7, pool=True),
    ],
    ids=["bottleneck", "timm", "timm-v2", "wide", "plain"],
)
def test_damaged_shapes_never_raise_anything_else(make):
    whole = on_meta(make)
    rng = random.Random(0)
    for _ in range(25):
        tensors = dict(whole)
        for name in rng.sample(list(whole), rng.randint(3, min(40, len(whole)))):
            shape = [rng.choice((size, 0, 1, 3, size + 1, 2 * size)) for size in whole[name].shape]
            tensors[name] = torch.empty(shape, device="meta")
            if rng.random() < 0.3:
                del tensors[name]
        assert refusal(tensors)


def test_absurd_block_numbers_are_refused_at_once():
    for number in ("9999", "9" * 5000):
        message = refusal(recognisable() | {f"layer1.{number}.conv1.weight": torch.zeros(4, 4, 3, 3)})
        assert "layer1.2" in message or "left over" in message


def test_a_bert_is_refused_as_a_transformer():
    tensors = {f"bert.encoder.layer.{n}.attention.self.query.weight": torch.zeros(4, 4) for n in range(12)}
    message = refusal(tensors)
    assert "this is a transformer, or another network with attention" in message
    assert "bert.encoder.layer.0.attention.self.query.weight (4, 4)" in message
    assert "--factory package.module:function" in message


def test_an_unknown_network_is_refused_with_what_was_seen():
    message = refusal({f"blocks.{n}.conv.weight": torch.zeros(4, 4, 3, 3) for n in range(38)})
    assert "no ResNet that Fuseline knows" in message
    assert "blocks.0.conv.weight (4, 4, 3, 3)" in message
    assert "and 32 more" in message
    assert "layer1.0.conv1.weight" in message
    assert "--factory package.module:function" in message


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "densenet121", "mobilenet_v2"])
def test_other_networks_are_refused(name):
    assert "no ResNet that Fuseline knows" in refusal(on_meta(getattr(torchvision.models, name)))


def test_a_small_network_with_some_of_the_names_is_refused():
    tensors = {"conv1.weight": torch.zeros(6, 3, 5, 5), "fc.weight": torch.zeros(10, 6), "fc.bias": torch.zeros(10)}
    assert "no ResNet that Fuseline knows" in refusal(tensors)
    assert "it holds no weights" in refusal({})


def test_an_unknown_naming_lists_those_there_are():
    message = refusal(recognisable(), naming="keras")
    assert "there is no naming 'keras'" in message
    assert "torchvision (torchvision); timm (timm's ResNet); huggingface" in message


def test_a_naming_that_does_not_fit_is_refused_with_what_does_not():
    message = refusal(recognisable(), naming="torchvision")
    assert "missing: layer2.0.downsample.0.weight (8, 4, 1, 1)" in message
    assert "left over: layer2.0.shortcut.0.weight (8, 4, 1, 1)" in message


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (torchvision.models.detection.fasterrcnn_resnet50_fpn, "a detection model"),
        (torchvision.models.detection.maskrcnn_resnet50_fpn, "a detection model"),
        (torchvision.models.segmentation.deeplabv3_resnet50, "a segmentation model"),
        (torchvision.models.segmentation.fcn_resnet50, "a segmentation model"),
        (torchvision.models.vit_b_32, "a transformer"),
        (torchvision.models.swin_t, "a transformer"),
    ],
)
@pytest.mark.parametrize("strip", ["", "backbone."])
def test_models_for_other_tasks_are_refused_by_name(make, what, strip):
    options = {"weights_backbone": None} if "resnet" in make.__name__ else {}
    tensors = {name.removeprefix(strip): tensor for name, tensor in on_meta(make, weights=None, **options).items()}
    assert f"this is {what}" in refusal(tensors)


@pytest.mark.parametrize("make", ["deeplabv3_resnet50", "fcn_resnet50"])
def test_a_segmentation_model_is_told_without_its_auxiliary_classifier(make):
    tensors = on_meta(
        getattr(torchvision.models.segmentation, make), weights=None, weights_backbone=None, aux_loss=False
    )
    assert "this is a segmentation model" in refusal(tensors)


def under(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in RESNET18.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    "tensors",
    [
        under("encoder_q.") | under("encoder_k.") | {"queue": torch.zeros(4, 8)},
        under("online_encoder.") | under("target_encoder."),
        under("") | {"projection_head.0.weight": torch.zeros(8, 512), "projection_head.2.weight": torch.zeros(8, 8)},
        under("") | {"projector.0.weight": torch.zeros(8, 512)},
    ],
)
def test_self_supervised_checkpoints_are_refused_with_the_way_on(tensors):
    message = refusal(tensors)
    assert "self-supervised training" in message
    assert "--head-from FILE" in message


@pytest.mark.parametrize("name", ["fc._packed_params._packed_params", "conv1.zero_point"])
def test_quantised_names_are_refused(name):
    message = refusal(recognisable() | {name: torch.zeros(1)})
    assert "a quantised checkpoint" in message
    assert "export the float model" in message


def test_a_head_of_two_layers_is_refused():
    network = torchvision.models.resnet18()
    network.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 3))
    message = refusal(network.state_dict())
    assert "its classifier has several layers with weights (fc.0, fc.3)" in message
    assert "--factory package.module:function" in message


def test_groupnorm_is_refused_by_name():
    network = torchvision.models.resnet18(norm_layer=lambda width: nn.GroupNorm(8, width))
    assert "there is bn1.weight, but no bn1.running_mean" in refusal(network.state_dict())


def test_an_ensemble_in_a_list_is_networks_side_by_side(tmp_path):
    network = trained_like(cifar_resnet18(width=4))
    tensors = {f"models.{n}.{name}": tensor for n in (0, 1) for name, tensor in network.state_dict().items()}
    assert "behind models.0., models.1. and nothing says which one is meant: --take models.0 takes" in refusal(tensors)
    torch.save(tensors, tmp_path / "ensemble.pt")
    taken = read_checkpoint(tmp_path / "ensemble.pt", take="models.0").tensors
    assert_equal_logits(network, recognise(taken), side=32)


@pytest.mark.parametrize("make", [torchvision.models.shufflenet_v2_x0_5, torchvision.models.mnasnet0_5])
def test_stages_of_depthwise_convolutions_are_no_networks_side_by_side(make):
    assert "side by side" not in refusal(on_meta(make))


def test_twins_with_depthwise_convolutions_are_networks_side_by_side():
    tensors = on_meta(torchvision.models.mobilenet_v2)
    twins = {f"{side}.{name}": tensor for name, tensor in tensors.items() for side in ("left", "right")}
    assert "2 networks side by side, behind left., right." in refusal(twins)


def test_a_lone_classifier_is_no_network():
    assert "no ResNet that Fuseline knows" in refusal(nn.Linear(512, 10).state_dict())
    fc = {f"fc.{name}": tensor for name, tensor in nn.Linear(512, 10).state_dict().items()}
    assert "no ResNet that Fuseline knows" in refusal(fc)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_a_network_for_sounds_or_volumes_is_refused_as_such_without_a_way_that_leads_nowhere(dimensions):
    tensors = dict(RESNET18)
    for name, tensor in RESNET18.items():
        if tensor.ndim == 4:
            tensors[name] = torch.empty((*tensor.shape[:2], *tensor.shape[2:3] * dimensions), device="meta")
    message = refusal(tensors)
    assert f"conv1.weight is {(64, 3, *(7,) * dimensions)}" in message
    assert "Fuseline serves classifiers of pictures (2-D) only" in message
    assert "--factory" not in message
