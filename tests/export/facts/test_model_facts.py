from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.facts.model_facts import facts_from, no_labels
from fuseline.export.network import TrainedNetwork
from fuseline.serve.errors import InputError


def network(**other: Any) -> TrainedNetwork:
    facts = {
        "classes": 10,
        "in_channels": 3,
        "default_input_size": 32,
    }
    return TrainedNetwork(
        module=nn.Identity(), architecture="a network", evidence=(), layer_names={}, **(facts | other)
    )


def checkpoint(**metadata: Any) -> Checkpoint:
    return Checkpoint(path=Path("x.pt"), sha256="0" * 64, tensors={}, notes=(), metadata=metadata)


def test_what_nothing_says_is_assumed_and_said() -> None:
    facts = facts_from(checkpoint(), network())
    assert facts.normalization.mean == (0.485, 0.456, 0.406)
    assert facts.labels == tuple(map(str, range(10)))
    assert facts.input.row_shape == (32, 32, 3)
    assert facts.input.preprocessing.resize_shorter_side == 32
    assert [(a.key, a.value, a.is_open) for a in facts.assumptions] == [
        ("size", "32", True),
        ("normalization", "imagenet", True),
        ("task", "single-label", True),
    ]
    assert not facts.labels_known


def test_what_the_checkpoint_says_is_taken_without_assumption() -> None:
    stored = {"labels": list("abcdefghij"), "mean": [0.1] * 3, "std": [0.2] * 3, "input_size": 48}
    facts = facts_from(checkpoint(**stored, task="single-label"), network())
    assert (facts.labels[1], facts.normalization.std, facts.input.height) == ("b", (0.2, 0.2, 0.2), 48)
    assert facts.assumptions == ()
    assert facts.labels_known


def test_flags_win_over_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("ABCDEFGHIJ"))
    stored = checkpoint(labels=list("abcdefghij"), mean=[0.1] * 3, std=[0.2] * 3, input_size=48)
    facts = facts_from(
        stored, network(), labels=str(tmp_path / "labels.txt"), mean=(0.3,) * 3, std=(0.4,) * 3, input_size=(224, 256)
    )
    assert (facts.labels[1], facts.normalization.mean, facts.normalization.std) == ("B", (0.3,) * 3, (0.4,) * 3)
    assert facts.input.row_shape == (224, 256, 3)
    assert facts.input.preprocessing.resize_shorter_side == 293


def test_stored_labels_of_another_count_are_left_out_and_said() -> None:
    facts = facts_from(checkpoint(labels=["a", "b"], mean=[0.1] * 3, std=[0.2] * 3), network())
    assert facts.labels[0] == "0"
    assert any("2 labels don't fit 10 classes" in warning for warning in facts.warnings)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"mean": (0.5,) * 3}, "belong together"),
        ({"mean": (0.5,), "std": (0.5,)}, "takes 3 channels"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.5, float("nan"))}, "std above 0"),
        ({"mean": (124.0,) * 3, "std": (0.5,) * 3}, "divide values"),
        ({"input_size": (4, 32)}, "4 x 32"),
        ({"input_size": (32, 9000)}, "32 x 9000"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        facts_from(checkpoint(), network(), **flags)


def test_resizing_and_interpolation_of_the_checkpoint_go_with_its_size() -> None:
    stored = checkpoint(input_size=288, resize_shorter_side=320, interpolation="bicubic")
    taken = facts_from(stored, network()).input
    assert (taken.height, taken.preprocessing.resize_shorter_side) == (288, 320)
    assert taken.preprocessing.interpolation == "bicubic"
    other = facts_from(stored, network(), input_size=(224, 224)).input
    assert (other.height, other.preprocessing.resize_shorter_side) == (224, 256)


@pytest.mark.parametrize("size", [(224, 160), (160, 224), (40, 48), (48, 40)])
def test_the_crop_lies_within_the_resized_image_also_when_it_is_not_square(size: tuple[int, int]) -> None:
    facts = facts_from(checkpoint(), network(), input_size=size)
    assert facts.input.preprocessing.resize_shorter_side >= max(size)


def test_a_single_logit_is_refused_with_the_cure() -> None:
    with pytest.raises(InputError, match="single logit.*stack"):
        facts_from(checkpoint(), network(classes=1))


def test_a_thousand_classes_without_labels_name_the_word_that_labels_them() -> None:
    assert "--labels imagenet" in no_labels(1000)
    assert "--labels imagenet" not in no_labels(10)


def test_a_size_flag_that_says_the_stored_size_keeps_its_resize() -> None:
    stored = checkpoint(input_size=288, resize_shorter_side=320)
    assert facts_from(stored, network(), input_size=(288, 288)).input.preprocessing.resize_shorter_side == 320


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"warnings": ["images are stretched"]}, "images are stretched"),
        ({"mean": [0.5] * 3}, "a mean without its counterpart"),
        ({"input_size": 64, "resize_shorter_side": 32}, "resize to 32 is below the input size 64 x 64"),
        ({"labels": [*"abcdefghi", " "]}, "class 9 is empty"),
        ({"labels": [*"abcdefghi", "j\nk"]}, "class 9 is empty or has several lines"),
    ],
)
def test_what_the_checkpoint_says_and_is_not_taken_is_said(stored: dict[str, Any], said: str) -> None:
    assert any(said in sentence for sentence in facts_from(checkpoint(**stored), network()).warnings)


def test_a_pool_of_a_fixed_size_in_the_file_allows_its_size_alone() -> None:
    told = network(implied_input_size=(32, 32), takes_sizes=((32, 32), (32, 32)))
    assert facts_from(checkpoint(), told).input.height == 32
    assert facts_from(checkpoint(), told, input_size=(32, 32)).input.height == 32
    for size in ({"input_size": (64, 64)}, {"assumed": {"size": "64"}}):
        with pytest.raises(InputError, match="covers the whole map of pictures of 32 alone.*--input-size 32"):
            facts_from(checkpoint(), told, **size)
    with pytest.raises(InputError, match="is 48 by the checkpoint"):
        facts_from(checkpoint(input_size=48), told)


def test_a_pool_that_several_sizes_fit_allows_them_and_takes_that_of_the_images() -> None:
    grey = network(in_channels=1, default_input_size=None, takes_sizes=((25, 25), (32, 32)))
    with pytest.raises(InputError, match=r"of 25 to 32 pixels.*: --input-size 28 or --input-size 32 says it"):
        facts_from(checkpoint(), grey)
    assert facts_from(checkpoint(), grey, input_size=(28, 28)).input.height == 28
    assert facts_from(checkpoint(), grey, shared_size=(28, 28)).input.height == 28
    with pytest.raises(InputError, match=r"is 64 by --input-size 64.*of 25 to 32 alone.*--input-size 32"):
        facts_from(checkpoint(), grey, input_size=(64, 64))
