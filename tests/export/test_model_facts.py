from pathlib import Path
from typing import Any

import pytest

from export.architectures import ResNetSpec, spec_from_tensors
from export.checkpoint import Checkpoint
from export.model_facts import IMAGENET_MEAN, facts_from
from serve.errors import InputError
from tests.export.resnets import cifar_resnet18


@pytest.fixture(scope="module")
def spec() -> ResNetSpec:
    return spec_from_tensors(cifar_resnet18(width=8).state_dict())


def checkpoint(**metadata: Any) -> Checkpoint:
    return Checkpoint(path=Path("x.pt"), sha256="0" * 64, tensors={}, notes=(), metadata=metadata)


def test_what_nothing_says_is_assumed_and_said(spec: ResNetSpec) -> None:
    facts = facts_from(checkpoint(), spec)
    assert facts.normalization.mean == IMAGENET_MEAN
    assert facts.labels == tuple(map(str, range(10)))
    assert facts.input.row_shape == (32, 32, 3)
    assert facts.input.preprocessing.resize_shorter_side == 32
    normalisation, labels = facts.assumptions
    assert ["stride 1" in sentence for sentence in facts.unseen] == [True]
    assert "ImageNet" in normalisation
    assert "--labels" in labels


def test_what_the_checkpoint_says_is_taken_without_assumption(spec: ResNetSpec) -> None:
    stored = {"labels": list("abcdefghij"), "mean": [0.1] * 3, "std": [0.2] * 3, "input_size": 48}
    facts = facts_from(checkpoint(**stored), spec)
    assert (facts.labels[1], facts.normalization.std, facts.input.height) == ("b", (0.2, 0.2, 0.2), 48)
    assert facts.assumptions == ()


def test_flags_win_over_the_checkpoint(spec: ResNetSpec, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("ABCDEFGHIJ"))
    stored = checkpoint(labels=list("abcdefghij"), mean=[0.1] * 3, std=[0.2] * 3, input_size=48)
    facts = facts_from(
        stored, spec, labels=tmp_path / "labels.txt", mean=(0.3,) * 3, std=(0.4,) * 3, input_size=(224, 256)
    )
    assert (facts.labels[1], facts.normalization.mean, facts.normalization.std) == ("B", (0.3,) * 3, (0.4,) * 3)
    assert facts.input.row_shape == (224, 256, 3)
    assert facts.input.preprocessing.resize_shorter_side == 293


def test_stored_labels_of_another_count_are_left_out_and_said(spec: ResNetSpec) -> None:
    facts = facts_from(checkpoint(labels=["a", "b"], mean=[0.1] * 3, std=[0.2] * 3), spec)
    assert facts.labels[0] == "0"
    assert any("2 labels don't fit 10 classes" in assumption for assumption in facts.assumptions)


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
def test_flags_that_do_not_fit_are_refused(spec: ResNetSpec, flags: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        facts_from(checkpoint(), spec, **flags)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"x" * (2**20 + 1)])
def test_a_labels_file_that_is_no_text_is_refused(spec: ResNetSpec, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match="one label a line"):
        facts_from(checkpoint(), spec, labels=tmp_path / "labels.txt")


@pytest.mark.parametrize("size", [(224, 160), (160, 224), (40, 48), (48, 40)])
def test_the_crop_lies_within_the_resized_image_also_when_it_is_not_square(
    spec: ResNetSpec, size: tuple[int, int]
) -> None:
    facts = facts_from(checkpoint(), spec, input_size=size)
    assert facts.input.preprocessing.resize_shorter_side >= max(size)


def test_a_single_logit_is_refused_with_the_cure() -> None:
    one = spec_from_tensors(cifar_resnet18(width=8, classes=1).state_dict())
    with pytest.raises(InputError, match="single logit.*stack"):
        facts_from(checkpoint(), one)
