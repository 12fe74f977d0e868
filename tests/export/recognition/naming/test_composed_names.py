"""Names of known parts in combinations that no row of names has, each against an independent network: equal logits."""

import contextlib
import random
import time

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fuseline.export.recognition.architectures import recognise, tensors_in
from fuseline.export.recognition.naming.composed_naming import compose
from fuseline.export.recognition.naming.naming_schemes import scheme_named
from fuseline.export.recognition.naming.shape_reading import read_shapes
from fuseline.export.recognition.recognition_refusals import ambiguity_of
from fuseline.serve.errors import ArchitectureError
from tests.export.recognition.equal_networks import (
    assert_equal_logits,
    assert_exports_with_a_dynamic_batch,
    assert_same_network,
    refusal,
)
from tests.export.recognition.hand_written import (
    BookResNet,
    ListedConvolutions,
    Named,
    TinyResNet8,
    TutorialResNet,
    children_in_a_row,
    fused,
    tensors_of,
)
from tests.export.resnets import cifar_resnet18, on_meta, option_a_resnet, trained_like

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ((2, 1, 2), (8, 16, 32))
LAYOUTS = {
    "conv and bn": {"stem": ("conv", "bn")},
    "conv and bn, linear": {"stem": ("conv", "bn"), "classifier": "linear"},
    "3x3 projections": {"stem": ("conv", "bn"), "shortcut": ("downsample.0", "downsample.1"), "shortcut_kernel": 3},
    "stem.0": {"stem": ("stem.0", "stem.1"), "block": "stage{stage}.{block}"},
    "flat blocks": {"stem": ("stem.0", "stem.1"), "block": "blocks.{flat}", "classifier": "head"},
    "flat from 1": {"block": "block{flat}", "first": (1, 0, 1)},
    "underscores": {
        "stem": ("conv_1", "bn_1"),
        "block": "stage_{stage}.{block}",
        "convs": ("conv_1", "conv_2"),
        "norms": ("bn_1", "bn_2"),
        "shortcut": ("short_cut.0", "short_cut.1"),
    },
    # A convolution that holds its BatchNorm, as detectron2's do.
    "BatchNorm within its convolution": {
        "stem": ("stem.conv1", "stem.conv1.norm"),
        "block": "res{stage}.{block}",
        "first": (2, 0, 0),
        "norms": ("conv1.norm", "conv2.norm"),
        "shortcut": ("shortcut", "shortcut.norm"),
    },
    "letters": {
        "stem": ("conv_1", "bn_1"),
        "block": "stage_{stage}.{block}",
        "convs": ("conv_a", "conv_b"),
        "norms": ("bn_a", "bn_b"),
    },
    "stages from 0": {"block": "layer{stage}.{block}", "first": (0, 0, 0), "classifier": "linear"},
    "stages and blocks in lists": {"block": "stages.{stage}.blocks.{block}", "first": (0, 0, 0)},
    "blocks from 1": {"block": "stage{stage}.block{block}", "first": (1, 1, 0)},
    "conv2_x": {"block": "conv{stage}_x.{block}", "first": (2, 0, 0), "stem": ("conv1.conv", "conv1.bn")},
    "downsample_conv of a stage": {
        "block": "layer{stage}.blocks.{block}",
        "shortcut": ("downsample_conv", "downsample_bn"),
        "shortcut_of_stage": True,
    },
    "a bare convolution of a stage": {
        "block": "layer{stage}.blocks.{block}",
        "shortcut": ("downsample_conv",),
        "shortcut_of_stage": True,
    },
    "short_cut without BatchNorm": {"shortcut": ("short_cut",), "shortcut_bias": True},
    "short_cut of 3x3": {"shortcut": ("short_cut",), "shortcut_bias": True, "shortcut_kernel": 3},
    "skip": {"shortcut": ("skip.0", "skip.1"), "classifier": "head.1"},
    "skip and skip_bn": {"shortcut": ("skip", "skip_bn")},
    "conv3 and bn3 in the shortcut": {"shortcut": ("conv3", "bn3")},
    "Sequential": {"convs": ("block.0", "block.3"), "norms": ("block.1", "block.4"), "shortcut": ("proj.0", "proj.1")},
    "convolution with BatchNorm": {
        "convs": ("conv1.conv", "conv2.conv"),
        "norms": ("conv1.norm", "conv2.norm"),
        "shortcut": ("shortcut.conv", "shortcut.norm"),
    },
    "ordinals": {"block": "{ordinal}_stage.{block}", "convs": ("first_conv", "second_conv"), "norms": ("bn1", "bn2")},
    "camel case": {"convs": ("convA", "convB"), "norms": ("normA", "normB"), "shortcut": ("convShortcut",)},
    "bottlenecks": {
        "stem": ("stem.conv", "stem.bn"),
        "block": "stage{stage}.{block}",
        "convs": ("conv_a", "conv_b", "conv_c"),
        "norms": ("bn_a", "bn_b", "bn_c"),
        "project_first": True,
    },
    "7x7": {"stem": ("conv", "bn"), "stem_kernel": 7, "shortcut": ("downsample.0", "downsample.1")},
    "biases": {"stem": ("conv", "bn"), "bias": True, "shortcut_bias": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_known_parts_are_recognised_in_any_combination(layout):
    reference = trained_like(Named(*SMALL, **LAYOUTS[layout]))
    recognised = recognise(reference.state_dict())
    assert recognised.spec.blocks_per_stage == SMALL[0]
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_such_a_network_becomes_one_of_a_row_and_is_the_same(layout):
    recognised = recognise(trained_like(Named(*SMALL, **LAYOUTS[layout])).state_dict())
    renamed = tensors_in(scheme_named("shortcut"), recognised)
    assert_same_network(recognised, recognise(renamed, naming="shortcut"))


@pytest.mark.parametrize("stages", [3, 4])
def test_computes_what_the_tutorials_resnet_computes(stages):
    reference = trained_like(TutorialResNet((2, 1, 2, 1)[:stages], (16, 32, 64, 128)[:stages]))
    reference.avg_pool = nn.AdaptiveAvgPool2d(1)
    recognised = recognise(reference.state_dict())
    assert (recognised.naming, "3x3 projections" in recognised.architecture) == ("composed", True)
    assert any("3x3 convolutions in the shortcuts" in sentence for sentence in recognised.evidence)
    assert_equal_logits(reference, recognised, side=32)
    assert_exports_with_a_dynamic_batch(recognised, side=32)


def test_computes_what_mlperf_tinys_resnet8_computes():
    reference = trained_like(TinyResNet8())
    recognised = recognise(reference.state_dict())
    assert recognised.spec.bare_convs == {"shortcut"}
    assert "projections without BatchNorm" in recognised.architecture
    assert_equal_logits(reference, recognised, side=32)


def test_computes_what_the_books_residual_computes():
    reference = trained_like(BookResNet())
    assert_equal_logits(reference, recognise(reference.state_dict()), side=64)


def test_the_books_network_in_one_sequential_is_recognised():
    book = BookResNet()
    reference = trained_like(nn.Sequential(*list(book.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), book.fc))
    assert "7.weight" in reference.state_dict()
    assert_equal_logits(reference, recognise(reference.state_dict()), side=64)


@pytest.mark.parametrize("project_first", [False, True])
@pytest.mark.parametrize("shortcut", [("shortcut.0", "shortcut.1"), ("conv3", "bn3"), ("conv3",)])
def test_a_block_a_stage_needs_no_number(shortcut, project_first):
    options = {"block": "layer{stage}", "shortcut": shortcut, "project_first": project_first}
    reference = trained_like(Named((1, 1, 1), (8, 16, 32), **options))
    recognised = recognise(reference.state_dict())
    assert recognised.spec.blocks_per_stage == (1, 1, 1)
    assert_equal_logits(reference, recognised, side=32)


def test_a_flat_list_that_projects_without_a_wider_output_is_refused():
    """Does the third block stride? In a list of blocks nothing tells."""
    tensors = tensors_of(Named((1, 1, 1), (8, 16, 16), block="blocks.{flat}"))
    assert "has a projection and gives 16 channels after 16" in refusal(tensors)


def test_a_list_whose_width_grows_otherwise_than_by_doubling_is_refused():
    """As in a PyramidNet: a wider output doesn't say that a block strides."""
    tensors = tensors_of(Named((1, 1, 1), (8, 12, 16), block="blocks.{flat}"))
    assert "gives 12 channels after 8" in refusal(tensors)
    named = trained_like(Named((1, 1, 1), (8, 12, 20), block="stage{stage}"))
    assert_equal_logits(named, recognise(named.state_dict()), side=32)


def test_a_list_in_which_a_projection_is_missing_is_refused():
    tensors = tensors_of(Named((1, 1, 1), (8, 16, 32), block="blocks.{flat}"))
    message = refusal({name: tensor for name, tensor in tensors.items() if "blocks.1.shortcut" not in name})
    assert "block 1 in `blocks.N`, counted from 0, goes from 8 to 16 channels" in message


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_a_stem_of_three_convolutions_under_other_names_is_recognised(name):
    """timm's network, renamed."""
    reference = timm.create_model(
        name, channels=(8, 16, 24, 32), num_classes=7, stem_type="deep_tiered", avg_down=False
    )
    names = {"conv1.": "stem.", "bn1.": "stem.7.", "layer": "stage", "fc.": "head."}
    tensors = {}
    for name, tensor in trained_like(reference).state_dict().items():
        whose = next(old for old in names if name.startswith(old))
        new = names[whose] + name.removeprefix(whose)
        tensors[new.replace(".downsample.", ".proj.")] = tensor
    recognised = recognise(tensors)
    assert (recognised.naming, recognised.spec.stem) == ("composed", "deep-maxpool")
    assert_equal_logits(reference, recognised, side=64)


def test_groups_are_told_and_depthwise_convolutions_refused():
    bottleneck = torchvision.models.resnet.Bottleneck
    reference = trained_like(torchvision.models.ResNet(bottleneck, [1, 1, 1, 1], 3, groups=4, width_per_group=8))
    renamed = {name.replace("layer", "stage"): tensor for name, tensor in reference.state_dict().items()}
    assert_equal_logits(reference, recognise(renamed), side=64)
    depthwise = on_meta(torchvision.models.ResNet, bottleneck, [1, 1, 1, 1], 3, groups=32, width_per_group=1)
    message = refusal({name.replace("layer", "stage"): tensor for name, tensor in depthwise.items()})
    assert "by their order and shapes are no two of 3x3" in message


def test_a_classifier_that_is_a_1x1_convolution_is_taken():
    reference = trained_like(Named(*SMALL, stem=("conv", "bn"), classifier="head"))
    tensors = reference.state_dict()
    tensors["head.weight"] = tensors["head.weight"][:, :, None, None]
    assert_equal_logits(reference, recognise(tensors), side=32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cifar_resnet18(width=8),
        lambda: timm.create_model("resnet18d", channels=(8, 16, 24, 32), num_classes=7),
        lambda: timm.create_model("seresnet18", channels=(8, 16, 24, 32), num_classes=7),
        lambda: Named(*SMALL, **LAYOUTS["letters"]),
    ],
    ids=["cifar", "timm d", "timm se", "composed"],
)
def test_what_another_tool_fused_is_recognised(make):
    """By torch.fx, which leaves convolutions their names."""
    reference = trained_like(make())
    tensors = fuse(reference).state_dict() if not isinstance(reference, Named) else fused_by_hand(reference)
    recognised = recognise(tensors)
    assert not any("running_mean" in name for name in recognised.module.state_dict())
    assert "eps" not in {assumption.key for assumption in recognised.assumptions}
    assert_equal_logits(reference, recognised, side=64)


def fused_by_hand(network: Named) -> dict[str, torch.Tensor]:
    """Each BatchNorm of `network` in the convolution that comes before it, which keeps its name."""
    tensors = {f"head.{leaf}": value for leaf, value in network.get_submodule("fc").state_dict().items()}
    pairs: list[tuple[str, ...]] = [("conv_1", "bn_1")]
    for steps, names, _ in network.in_order:
        pairs += [*steps, *([tuple(names)] if names else [])]
    for conv, norm in pairs:
        whole = fuse_conv_bn_eval(network.get_submodule(conv), network.get_submodule(norm))
        tensors |= {f"{conv}.{leaf}": value for leaf, value in whole.state_dict().items()}
    return tensors


def test_two_readings_of_one_name_are_to_be_told_by_names():
    """Their own --naming couldn't tell them apart."""
    (placement,) = compose(tensors_of(Named(*SMALL, stem=("conv", "bn")))).placements
    message = str(ambiguity_of([placement.scheme, placement.scheme]))
    assert "--rename-template" in message
    assert "--naming" not in message


def test_pre_activation_in_a_sequential_is_told_from_the_order():
    options = {"convs": ("body.2", "body.5"), "norms": ("body.0", "body.3"), "shortcut": ("skip",), "preact": True}
    reference = trained_like(Named(*SMALL, stem=("conv", "bn"), **options))
    assert_equal_logits(reference, recognise(reference.state_dict(), naming="composed-preact"), side=32)
    assert_equal_logits(reference, recognise(reference.state_dict(), assumed={"projection": "activated"}), side=32)


def test_what_stands_before_the_classifier_is_an_assumption():
    (head,) = (
        a
        for a in recognise(Named(*SMALL, stem=("conv", "bn"), classifier="head.1").state_dict()).assumptions
        if a.key == "head"
    )
    assert "head.1" in head.meaning


def test_children_in_one_sequential_are_recognised():
    whole = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 3)
    reference = trained_like(children_in_a_row(whole))
    assert_equal_logits(reference, recognise(reference.state_dict()), side=64)


def test_no_projection_at_all_is_option_a_where_stages_and_blocks_are_told():
    reference = trained_like(Named((2, 1, 1), (16, 32, 64), stem=("conv", "bn"), shortcut=None, classifier="linear"))
    recognised = recognise(reference.state_dict())
    assert recognised.spec.shortcut == "option-a"
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("stem", [("conv1", "norm"), ("first.0", "last")])
def test_pre_activation_must_be_told_what_its_projections_take(stem):
    options = {"block": "stages.{stage}.{block}", "first": (0, 0, 0), "shortcut": ("skip",), "preact": True}
    reference = trained_like(Named(*SMALL, stem=stem, **options))
    message = refusal(reference.state_dict())
    assert "--naming composed-preact (" in message
    assert "--naming composed-preact-raw (" in message
    recognised = recognise(reference.state_dict(), naming="composed-preact")
    assert_equal_logits(reference, recognised, side=32)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_batchnorms_fused_before_leave_the_same_network_without_them(block):
    kind = {"basic": torchvision.models.resnet.BasicBlock, "bottleneck": torchvision.models.resnet.Bottleneck}[block]
    original = trained_like(torchvision.models.ResNet(kind, [1, 1, 1, 1], 3))
    reference = fused(original)
    recognised = recognise(reference.state_dict())
    assert recognised.spec.bare_convs
    assert any("none is left to fold" in sentence for sentence in recognised.evidence)
    assert_equal_logits(original, recognised, side=64)
    plain = {name.replace("conv1.0.", "conv1."): tensor for name, tensor in reference.state_dict().items()}
    assert recognise(plain).naming == "torchvision"
    assert_same_network(recognise(plain), recognised)


def test_a_bias_less_network_without_batchnorms_is_not_taken_for_a_fused_one():
    tensors = tensors_of(option_a_resnet(20))
    bare = {name: tensor for name, tensor in tensors.items() if "bn" not in name}
    assert "bn1.weight" in refusal(bare)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_list_of_convolutions_does_not_tell_whether_shortcuts_exist(shortcuts):
    message = refusal(ListedConvolutions(shortcuts).state_dict())
    assert "nothing tells whether shortcuts exist" in message
    assert "--factory" in message


def vgg(pattern: str, widths=(8, 8, 16, 16)) -> dict[str, torch.Tensor]:
    """Convolutions in pairs, as VGG has them, with a BatchNorm each."""
    tensors, taken = {}, 3
    for number, width in enumerate(widths):
        stage, place = divmod(number, 2)
        layers = {pattern.format(s=stage + 1, conv=place + 1, c=3 * place): nn.Conv2d(taken, width, 3, bias=False)}
        norm = pattern.replace("conv", "bn", 1) if "{conv}" in pattern else pattern.replace("{c}", "{n}")
        name = norm.format(s=stage + 1, bn=place + 1, conv=place + 1, n=3 * place + 1)
        layers[name] = nn.BatchNorm2d(width)
        for name, layer in layers.items():
            tensors |= {f"{name}.{leaf}": value for leaf, value in layer.state_dict().items()}
        taken = width
    return tensors | {f"fc.{leaf}": value for leaf, value in nn.Linear(taken, 4).state_dict().items()}


@pytest.mark.parametrize("pattern", ["block{s}.{c}", "features.{s}.{c}"])
def test_pairs_of_convolutions_without_projections_are_no_residual_blocks(pattern):
    assert "composed" not in refusal(vgg(pattern))


@pytest.mark.parametrize(
    ("options", "tells"),
    [
        # No layer stands between the first BatchNorm and the second convolution: no ReLU either.
        ({"convs": ("block.0", "block.2"), "norms": ("block.1", "block.3")}, "don't go with"),
        ({"convs": ("block.0", "block.4"), "norms": ("block.1", "block.5")}, "don't go with"),
        # A layer stands between a convolution and its BatchNorm: an activation.
        ({"convs": ("conv1.0", "conv2.0"), "norms": ("conv1.2", "conv2.2")}, "don't go with"),
        # A layer stands before each convolution: another padding.
        ({"convs": ("conv1.1", "conv2.1"), "norms": ("conv1.2", "conv2.2")}, "don't go with"),
        ({"convs": ("block.1", "block.4"), "norms": ("block.2", "block.5")}, "don't go with"),
        # A layer stands before the projection: a pool.
        ({"shortcut": ("skip.1", "skip.2")}, "before skip.1 in the shortcut"),
        ({"shortcut": ("skip.1",)}, "before skip.1 in the shortcut"),
        ({"convs": ("conv_a", "conv_b"), "stem": ("stem.1", "stem.2")}, "no stem"),
        ({"convs": ("conv_a", "conv_b"), "stem": ("stem.0", "stem.2")}, "no stem"),
        ({"convs": ("conv_a", "conv_b"), "stem": ("stem.1", "bn")}, "no stem"),
    ],
)
def test_what_stands_between_layers_in_a_sequential_is_not_guessed(options, tells):
    message = refusal(Named(*SMALL, **{"block": "stage{stage}.{block}", **options}).state_dict())
    assert tells in message
    assert "--factory" in message


def test_a_shortcut_beside_the_blocks_of_a_stage_may_go_past_all_of_them():
    options = {"block": "layer{stage}.blocks.{block}", "shortcut": ("skip.0", "skip.1"), "shortcut_of_stage": True}
    message = refusal(Named(*SMALL, **options).state_dict())
    assert "skip.0, beside the blocks `layerN.blocks.M` of a stage, may be the shortcut of the first of them" in message
    assert "--factory" in message
    single = trained_like(Named((1, 1, 1), (8, 16, 32), **options))
    assert_equal_logits(single, recognise(single.state_dict()), side=32)


def test_a_convolution_behind_the_blocks_is_not_suggested_as_a_shortcut():
    """Where the width stays, its shape proves nothing."""
    names = {"block": "blocks.{flat}", "convs": ("conv_a", "conv_b"), "norms": ("bn_a", "bn_b")}
    network = Named(*SMALL, stem=("stem.0", "stem.1"), **names)
    behind = nn.ModuleDict({"post": nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))})
    assert not read_shapes({**tensors_of(network), **behind.state_dict()}).is_whole
    assert read_shapes(tensors_of(network)).is_whole


def test_which_of_several_matrices_is_the_classifier_is_not_suggested():
    tensors = tensors_of(Named(*SMALL)) | {"aux.weight": torch.ones(3, 32)}
    assert {read_shapes(tensors).names[name] for name in ("fc.weight", "fc.bias", "aux.weight")} == {""}


def test_a_first_stage_that_is_cut_off_is_not_made_up_for():
    tensors = Named((1, 1, 1), (8, 16, 32), stem=("conv", "bn")).state_dict()
    cut = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer1")}
    assert refusal(cut)


def test_damaged_shapes_and_odd_names_never_raise_anything_else():
    rng = random.Random(0)
    odd = ("", ".", "..", "{}", "²", "9" * 5000, "a." * 40, "conv1", "0", "é", "٣")
    for layout in list(LAYOUTS)[::2]:
        whole = tensors_of(Named(*SMALL, **LAYOUTS[layout]))
        for _ in range(8):
            tensors = dict(whole)
            for name in rng.sample(list(whole), rng.randint(1, 20)):
                tensor = tensors.pop(name)
                shape = [rng.choice((size, 0, 1, 3, size + 1, 2 * size)) for size in tensor.shape]
                parts = name.split(".")
                if rng.random() < 0.5:
                    parts[rng.randrange(len(parts))] = rng.choice(odd)
                if rng.random() < 0.8:
                    tensors[".".join(parts)] = torch.empty(shape, device="meta")
            with contextlib.suppress(ArchitectureError):
                recognise(tensors)
            read_shapes(tensors)


def test_thousands_of_layers_are_refused_at_once():
    tensors = {
        f"a{n}.b{n % 7}.c{n % 3}.conv{n % 2}.weight": torch.empty(1, 1, 3, 3, device="meta") for n in range(9000)
    }
    tensors |= {"x." * 3000 + "weight": torch.empty(1, device="meta")}
    started = time.monotonic()
    assert refusal(tensors)
    assert time.monotonic() - started < 10


def test_every_single_tensor_is_needed():
    tensors = tensors_of(Named((1, 1, 1), (8, 16, 32), **LAYOUTS["letters"]))
    for name in tensors.keys() - {"fc.bias"}:  # a classifier may have none
        assert refusal({other: tensor for other, tensor in tensors.items() if other != name})
