"""Names without wrappers' prefixes, and which tensors of a file are the network."""

import pytest
import torch

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.recognition.architectures import recognise
from fuseline.serve.errors import FuselineError
from tests.export.small_weights import assert_same, small_network, without_counters

WEIGHTS = without_counters(dict(small_network().state_dict()))
BACKBONE = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("fc.")}
HEAD = {name: tensor for name, tensor in WEIGHTS.items() if name.startswith("fc.")}


def wrapped(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def read(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    return read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "prefix",
    [
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.",
        "net.module._orig_mod.",
        "model.model.net.",
        "network.",
        "resnet.",
        "model.resnet.",
        "_fsdp_wrapped_module.model.",
        "cnn.",
        "0.",
        "model.timm_model.",
    ],
)
def test_wrappers_in_any_nesting(tmp_path, prefix):
    checkpoint = read(tmp_path, {"state_dict": wrapped(prefix, WEIGHTS)})
    assert_same(checkpoint.tensors, WEIGHTS)
    assert all(any(f"`{part}.`" in note for note in checkpoint.notes) for part in prefix.split(".") if part)


def test_a_compiled_layer_within_a_network(tmp_path):
    weights = {"net.conv1._orig_mod.weight": WEIGHTS["conv1.weight"], "net.conv1._orig_mod.bias": WEIGHTS["conv1.bias"]}
    weights |= wrapped("net.", {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("conv1.")})
    assert_same(read(tmp_path, weights).tensors, WEIGHTS)


TRAINING = {
    "criterion.weight": torch.ones(2),
    "train_acc.tp": torch.tensor(3),
    "val_confusion.confmat": torch.zeros(2, 2),
    "loss_fn.weight": torch.ones(2, 4),
    "teacher.conv1.weight": torch.zeros(4, 3, 3, 3),
    "teacher.fc.weight": torch.zeros(2, 4),
}


@pytest.mark.parametrize("prefix", ["model.", "net.", "", "model.net.", "backbone."])
def test_what_training_needed_beside_the_network_is_left_out_and_listed(tmp_path, prefix):
    checkpoint = read(tmp_path, {"state_dict": wrapped(prefix, WEIGHTS) | TRAINING})
    assert_same(checkpoint.tensors, WEIGHTS)
    notes = "\n".join(checkpoint.notes)
    for name in ("`criterion.weight`", "`train_acc.tp`", "`loss_fn.weight`", "`teacher.*`"):
        assert name in notes


@pytest.mark.parametrize(
    "beside",
    [
        {"adapt.weight": torch.ones(3, 1, 1, 1), "adapt.bias": torch.ones(3)},
        {"stem.0.weight": torch.ones(3, 3, 3, 3)},
        {"input_bn.running_mean": torch.ones(3), "input_bn.running_var": torch.ones(3)},
        {"bn_out.weight": torch.ones(2), "bn_out.bias": torch.ones(2)},
        {"temperature": torch.ones(1)},
        {"scale": torch.ones(1, 3, 1, 1)},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_what_may_compute_beside_a_wrapped_network_is_never_left_out(tmp_path, beside):
    content = wrapped("model.", WEIGHTS) | beside
    checkpoint = read(tmp_path, content)
    assert_same(checkpoint.tensors, content)
    (note,) = checkpoint.notes
    assert f"`{next(iter(beside)).partition('.')[0]}" in note
    assert "--factory" in note
    with pytest.raises(FuselineError):
        recognise(checkpoint.tensors)


@pytest.mark.parametrize("prefix", ["", "normalize.", "model.normalize."])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1), (3, 1, 1)])
def test_a_layer_that_normalises_images_says_the_mean_and_std(tmp_path, prefix, shape):
    statistics = {"mean": torch.tensor([0.25, 0.5, 0.75]).view(shape), "std": torch.full(shape, 0.5)}
    checkpoint = read(tmp_path, wrapped("model.net.", WEIGHTS) | wrapped(prefix, statistics))
    assert_same(checkpoint.tensors, WEIGHTS)
    assert checkpoint.metadata == {"mean": [0.25, 0.5, 0.75], "std": [0.5, 0.5, 0.5]}


def test_whole_numbers_beside_a_wrapped_network_are_left_out_and_listed(tmp_path):
    checkpoint = read(tmp_path, wrapped("model.", WEIGHTS) | {"seen": torch.tensor(9), "queue_ptr": torch.tensor([1])})
    assert_same(checkpoint.tensors, WEIGHTS)
    assert any("`queue_ptr`, `seen`" in note for note in checkpoint.notes)


@pytest.mark.parametrize("outer", ["", "model.", "module.model."])
@pytest.mark.parametrize("head", ["fc", "head", "classifier.1", "my_last_layer"])
def test_a_classifier_beside_its_backbone_is_kept(tmp_path, outer, head):
    own_head = {name.replace("fc", head): tensor for name, tensor in HEAD.items()}
    content = wrapped(f"{outer}backbone.", BACKBONE) | wrapped(outer, own_head) | {"criterion.weight": torch.ones(2)}
    checkpoint = read(tmp_path, {"state_dict": content})
    assert_same(checkpoint.tensors, BACKBONE | own_head)
    assert any(f"`{head.partition('.')[0]}` beside it kept" in note for note in checkpoint.notes)
    assert any("`criterion.weight`" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "content",
    [
        wrapped("model.", WEIGHTS) | HEAD,
        wrapped("model.", WEIGHTS) | wrapped("net.", {name: 2 * tensor for name, tensor in WEIGHTS.items()}),
        wrapped("backbone.", BACKBONE)
        | {"classifier.0.weight": torch.ones(4, 4, 3, 3), "classifier.1.weight": torch.ones(2, 4)},
        wrapped("backbone.body.", BACKBONE)
        | {"rpn.head.conv.weight": torch.ones(4, 4, 3, 3), "roi_heads.box_head.fc6.weight": torch.ones(4, 4)},
        wrapped("resnet.embedder.", BACKBONE)
        | {"classifier.1.weight": torch.ones(2, 4), "classifier.1.bias": torch.ones(2)},
    ],
    ids=["two classifiers", "two networks", "segmentation", "detection", "hugging face"],
)
def test_names_stay_where_it_is_not_clear_what_the_network_is(tmp_path, content):
    checkpoint = read(tmp_path, content)
    assert_same(checkpoint.tensors, content)
    assert checkpoint.notes == ()


def test_hugging_face_names_in_a_wrapper_lose_the_wrapper_alone(tmp_path):
    names = {
        "resnet.embedder.embedder.convolution.weight": torch.ones(4, 3, 7, 7),
        "classifier.1.weight": torch.ones(2, 4),
    }
    assert_same(read(tmp_path, wrapped("model.", names)).tensors, names)


def test_counters_are_kept_under_the_network_s_names(tmp_path):
    checkpoint = read(tmp_path, {"state_dict": wrapped("model.module.", dict(small_network().state_dict()))})
    assert checkpoint.counters.keys() == {"bn1.num_batches_tracked"}
    assert_same(checkpoint.tensors, WEIGHTS)


def test_a_name_that_is_no_text_for_a_terminal_is_written_out(tmp_path):
    checkpoint = read(tmp_path, wrapped("model.", WEIGHTS) | {"\ud800": torch.tensor(1)})
    assert any("\\ud800" in note for note in checkpoint.notes)
    assert all(note.encode() for note in checkpoint.notes)
