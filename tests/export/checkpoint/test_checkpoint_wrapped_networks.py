"""Real small networks in wrappers of all kinds: read, recognised, and equal in logits to the module that was saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fuseline.export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from fuseline.export.loading.head import head_from
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import ArchitectureError, CheckpointError
from tests.export.resnets import CifarBasic, CifarResNet, trained_like

Tensors = dict[str, Tensor]


def network(seed: int = 0, classes: int = 5) -> CifarResNet:
    torch.manual_seed(seed)
    return trained_like(CifarResNet(CifarBasic, (1, 1, 1, 1), [4, 8, 16, 32], classes=classes))


NETWORK, OTHER = network(), network(1)
WHOLE: Tensors = dict(NETWORK.state_dict())
SECOND: Tensors = dict(OTHER.state_dict())
BACKBONE = {name: tensor for name, tensor in WHOLE.items() if not name.startswith("linear.")}
WEIGHT, BIAS = WHOLE["linear.weight"], WHOLE["linear.bias"]


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def backbone_of(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("linear.")}


def head(name: str, *, bias: bool = True) -> Tensors:
    return {f"{name}.weight": WEIGHT} | ({f"{name}.bias": BIAS} if bias else {})


def projection(prefix: str, features: int = 32) -> Tensors:
    layers = nn.Sequential(nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    return under(prefix, dict(layers.state_dict()))


def read(tmp_path: Path, content: object, **options) -> Checkpoint:
    torch.save(content, tmp_path / "model.pt")
    return read_checkpoint(tmp_path / "model.pt", **options)


def assert_is(checkpoint: Checkpoint, module: nn.Module = NETWORK, **options) -> None:
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(recognise(checkpoint.tensors, **options).module(images), module(images))


@pytest.mark.parametrize(
    "prefix",
    [
        "_module.",
        "net.0.",
        "0.",
        "model.model.",
        "backbone.body.",
        "feature_extractor.model.",
        "trunk.",
        "arch.base_model.1.",
        "_forward_module.model.cnn_.",
        "image_encoder.visual.trunk.",
    ],
)
def test_any_prefix_goes_from_a_whole_network_and_from_a_backbone(tmp_path, prefix):
    assert_is(read(tmp_path, under(prefix, WHOLE)))
    checkpoint = read(tmp_path, under(prefix, BACKBONE))
    assert_is(checkpoint, head=(WEIGHT, BIAS))
    assert all(f"`{part}.`" in "".join(checkpoint.notes) for part in prefix.split(".") if part)


@pytest.mark.parametrize("beside", [{"loss_fn.weight": torch.ones(5)}, {"steps": torch.tensor(3)}])
def test_any_prefix_goes_where_nothing_that_computes_stands_beside_it(tmp_path, beside):
    assert_is(read(tmp_path, under("trunk.body.", WHOLE) | beside))


def test_a_prefix_stays_where_something_computes_beside_it_and_take_is_the_way_on(tmp_path):
    content = under("trunk.", WHOLE) | {"scale": torch.tensor([2.0])}
    checkpoint = read(tmp_path, content)
    assert any("`scale` beside it may be a part of the network" in note for note in checkpoint.notes)
    assert any("--take trunk takes the network without it" in note for note in checkpoint.notes)
    with pytest.raises(ArchitectureError):
        recognise(checkpoint.tensors)
    assert_is(read(tmp_path, content, take="trunk"))


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("backbone.", "head"),
        ("backbone.", "classifier"),
        ("backbone.", "my_linear"),
        ("encoder.", "top.1"),
        ("0.", "1"),
        ("net.0.", "net.1"),
        ("model.trunk.", "model.heads.species"),
        ("", "top"),
        ("", "head.1"),
        ("model.", "model.prediction"),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_lone_matrix_of_the_backbones_width_is_the_classifier_with_or_without_a_bias(tmp_path, prefix, name, bias):
    checkpoint = read(tmp_path, under(prefix, BACKBONE) | head(name, bias=bias))
    module = network()
    if not bias:
        nn.init.zeros_(module.linear.bias)
    assert_is(checkpoint, module)
    evidence = " ".join(recognise(checkpoint.tensors).evidence)
    assert "the only matrix beside the backbone" in evidence
    assert ("has no bias in the file: zeros" in evidence) is not bias


def test_a_classifier_by_the_usual_name_may_lack_its_bias(tmp_path):
    module = network()
    nn.init.zeros_(module.linear.bias)
    assert_is(read(tmp_path, BACKBONE | head("linear", bias=False)), module)
    assert_is(read(tmp_path, BACKBONE), module, head=head_from(read(tmp_path, head("any", bias=False))))


TWO_HEADS = under("backbone.", BACKBONE) | head("fine") | under("coarse.", dict(nn.Linear(32, 2).state_dict()))


def test_of_two_linear_layers_beside_a_backbone_none_is_guessed(tmp_path):
    checkpoint = read(tmp_path, TWO_HEADS)
    with pytest.raises(ArchitectureError) as refused:
        recognise(checkpoint.tensors)
    for text in ("fine.weight (5, 32), coarse.weight (2, 32)", "--head NAME", "--head-from FILE", "--factory"):
        assert text in str(refused.value)
    for name in ("fine", "fine.weight"):
        assert_is(checkpoint, head_name=name)
    assert_is(checkpoint, head=(WEIGHT, BIAS))
    evidence = recognise(checkpoint.tensors, head_name="fine").evidence
    assert "left out, as --head says the classifier: coarse.weight (2, 32), coarse.bias (2,)" in evidence
    with pytest.raises(ArchitectureError, match=r"--head 'middle' is no linear layer .* coarse \(2, 32\)"):
        recognise(checkpoint.tensors, head_name="middle")


def test_a_lone_matrix_of_another_width_is_named_with_both_widths(tmp_path):
    content = under("backbone.", BACKBONE) | under("head.", dict(nn.Linear(48, 5).state_dict()))
    with pytest.raises(ArchitectureError, match=r"gives 32 features, .* head.weight \(5, 48\), takes 48\. .*--factory"):
        recognise(read(tmp_path, content).tensors)


def test_the_head_of_another_file_may_be_named(tmp_path):
    heads = head("online.fine") | under("online.coarse.", dict(nn.Linear(32, 2).state_dict()))
    with pytest.raises(CheckpointError, match="2 two-dimensional weights.*--head NAME says which"):
        head_from(read(tmp_path, heads))
    weight, bias = head_from(read(tmp_path, heads), "fine")
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(bias, BIAS)
    with pytest.raises(CheckpointError, match=r"model.pt: --head 'other' .*fine \(5, 32\)"):
        head_from(read(tmp_path, heads), "other")


def encoder(prefix: str, tensors: Tensors = BACKBONE, *, head: bool = False) -> Tensors:
    """A backbone, with a projection head in the place of its classifier."""
    return under(prefix, backbone_of(tensors)) | (projection(f"{prefix}fc.") if head else {})


def linear(prefix: str) -> Tensors:
    return under(prefix, dict(nn.Linear(32, 8).state_dict()))


UNTRAINED_HEAD = {"linear.weight": torch.zeros(7, 32), "linear.bias": torch.zeros(7)}
BYOL = [
    under("online_encoder.net.", BACKBONE | UNTRAINED_HEAD),
    projection("online_encoder.projector."),
    encoder("target_encoder.net.", SECOND),
    projection("target_encoder.projector."),
    projection("online_predictor.", 8),
]
PRETRAINED = {
    "MoCo v1": [
        encoder("module.encoder_q."),
        linear("module.encoder_q.fc."),
        encoder("module.encoder_k.", SECOND),
        linear("module.encoder_k.fc."),
        {"module.queue": torch.zeros(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)},
    ],
    "MoCo v2": [encoder("module.encoder_q.", head=True), encoder("module.encoder_k.", SECOND, head=True)],
    "MoCo v3": [
        encoder("module.base_encoder.", head=True),
        encoder("module.momentum_encoder.", SECOND, head=True),
        projection("module.predictor.", 8),
    ],
    "SimSiam": [encoder("module.encoder.", head=True), projection("module.predictor.", 8)],
    "BYOL": BYOL,
    "BYOL with its network": [under("net.", BACKBONE | UNTRAINED_HEAD), *BYOL],
    "Barlow Twins": [
        encoder("module.backbone."),
        projection("module.projector."),
        {"module.bn.running_mean": torch.zeros(8), "module.bn.running_var": torch.ones(8)},
    ],
    "SwAV": [
        encoder("module."),
        projection("module.projection_head."),
        {"module.prototypes.weight": torch.zeros(9, 8)},
    ],
    "lightly": [
        encoder("backbone."),
        projection("projection_head.layers."),
        encoder("backbone_momentum.", SECOND),
        projection("projection_head_momentum.layers."),
    ],
}


def joined(parts: list[Tensors]) -> Tensors:
    return {name: tensor for part in parts for name, tensor in part.items()}


@pytest.mark.parametrize("kind", [kind for kind in PRETRAINED if kind != "Barlow Twins"])
def test_the_encoder_of_a_self_supervised_training_takes_a_head_from_elsewhere(tmp_path, kind):
    checkpoint = read(tmp_path, {"state_dict": joined(PRETRAINED[kind]), "arch": "resnet"})
    with pytest.raises(ArchitectureError, match=r"backbone without a classifier .*--head-from FILE"):
        recognise(checkpoint.tensors)
    assert_is(checkpoint, head=(WEIGHT, BIAS))
    assert any("no classifier: --head-from FILE gives one" in note for note in checkpoint.notes)


def test_where_more_stands_beside_the_encoder_take_names_it(tmp_path):
    content = joined(PRETRAINED["Barlow Twins"])
    with pytest.raises(ArchitectureError, match="--take PREFIX.*--head-from FILE"):
        recognise(read(tmp_path, content).tensors)
    assert_is(read(tmp_path, content, take="backbone"), head=(WEIGHT, BIAS))
    with_probe = under("backbone.", BACKBONE) | projection("projector.") | head("classifier")
    with pytest.raises(ArchitectureError, match="--take PREFIX.*--head-from FILE"):
        recognise(read(tmp_path, with_probe).tensors)
    found = head_from(read(tmp_path, with_probe), "classifier")
    assert_is(read(tmp_path, with_probe, take="backbone"), head=found)


def test_a_projection_head_behind_what_take_names_is_no_classifier_either(tmp_path):
    for taken, module in (("encoder_q", NETWORK), ("module.encoder_k", OTHER)):
        checkpoint = read(tmp_path, {"state_dict": joined(PRETRAINED["MoCo v1"])}, take=taken)
        with pytest.raises(ArchitectureError, match="backbone without a classifier"):
            recognise(checkpoint.tensors)
        weight, bias = module.linear.weight.detach(), module.linear.bias.detach()
        assert_is(checkpoint, module, head=(weight, bias))


def test_a_shortcut_that_is_called_projection_is_no_projection_head(tmp_path):
    content = WHOLE | {
        "layer2.0.projection.weight": torch.zeros(8, 4, 1, 1),
        "layer2.0.projection.bias": torch.zeros(8),
    }
    assert read(tmp_path, content).tensors.keys() >= {"linear.weight", "layer2.0.projection.weight"}


PAIRS = {
    "sub-dicts": {"student": WHOLE, "teacher": SECOND, "epoch": 3},
    "wrapped sub-dicts": {"student": under("module.", WHOLE), "teacher": under("module.", SECOND)},
    "prefixes": under("student.", WHOLE) | under("teacher.", SECOND),
    "within a Lightning module": {"state_dict": under("student_model.", WHOLE) | under("teacher_model.", SECOND)},
    "behind another": {"model": under("distiller.student.", WHOLE) | under("distiller.teacher.", SECOND)},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_of_a_student_and_its_teacher_both_are_named_and_either_can_be_taken(tmp_path, kind):
    checkpoint = read(tmp_path, PAIRS[kind])
    assert_is(checkpoint)
    teacher = "teacher_model" if kind.startswith("within") else "teacher"
    assert any(f"--take {teacher} takes" in note for note in checkpoint.notes)
    taken = read(tmp_path, PAIRS[kind], take=teacher)
    assert_is(taken, OTHER)
    assert any("as --take says" in note for note in taken.notes)


def test_two_networks_of_which_neither_is_meant_are_named_with_the_flag(tmp_path):
    for content in (under("net1.", WHOLE) | under("net2.", SECOND), under("m.a.", WHOLE) | under("m.b.", SECOND)):
        checkpoint = read(tmp_path, content)
        with pytest.raises(ArchitectureError, match=r"2 networks side by side, .*--take (net1|a) takes the first"):
            recognise(checkpoint.tensors)
    assert_is(read(tmp_path, content, take="b"), OTHER)
    with pytest.raises(CheckpointError, match="several networks, at 'one', 'two'.*--take one takes the first"):
        read(tmp_path, {"one": WHOLE, "two": SECOND, "epoch": 3})
    assert_is(read(tmp_path, {"one": WHOLE, "two": SECOND}, take="two"), OTHER)


def test_the_same_weights_twice_are_one_network(tmp_path):
    assert_is(read(tmp_path, under("model.", WHOLE) | under("best.", WHOLE)))


def test_weights_at_a_key_of_any_name_are_found(tmp_path):
    checkpoint = read(tmp_path, {"my_network": WHOLE, "epoch": 3, "optim": {"state": {}, "param_groups": []}})
    assert_is(checkpoint)
    assert any("weights taken from `my_network`" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("take", "module"),
    [("a", NETWORK), ("a.net", NETWORK), ("b.deep.net", OTHER), ("b.deep", OTHER), ("odd.key", OTHER)],
)
def test_take_is_a_key_a_prefix_or_one_after_the_other(tmp_path, take, module):
    content = {
        "a": {"state_dict": under("net.", WHOLE)},
        "b": {"deep": under("net.", SECOND)},
        "odd.key": SECOND,
        "model": under("x.", SECOND),
    }
    assert_is(read(tmp_path, content, take=take), module)


def test_what_take_names_must_be_there(tmp_path):
    content = {"student": under("module.", BACKBONE) | under("module.head.", {"weight": WEIGHT}), "teacher": SECOND}
    for take in ("pupil", "teacher.net", "conv9"):
        with pytest.raises(CheckpointError) as refused:
            read(tmp_path, content, take=take)
        assert f"--take '{take.removeprefix('teacher.')}' names no key" in str(refused.value)
        assert "`teacher`" in str(refused.value)
        assert ("`module.head`" in str(refused.value)) is not take.startswith("teacher")
    twice = under("a.net.", WHOLE) | under("b.net.", SECOND)
    with pytest.raises(CheckpointError, match="fits 2 prefixes of names; give one: --take a.net or --take b.net"):
        read(tmp_path, twice, take="net")


def test_averaged_weights_within_what_is_taken(tmp_path):
    content = {"student": {"model": SECOND, "model_ema": WHOLE}, "teacher": SECOND}
    assert_is(read(tmp_path, content, take="student", prefer_ema=True))
    assert_is(read(tmp_path, content, take="student"), OTHER)
