"""Logits of two models, compared label by label."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.model_package import Manifest, Preprocessing, load_package
from fuseline.serve.routing.comparison import Comparer, Comparison, takes_same_rows, why_incomparable


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    """That of a model with four labels."""
    return load_package(package).manifest


def logits(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_agreement_is_that_of_the_most_probable_label_and_the_difference_the_largest(manifest: Manifest) -> None:
    answered = logits((3, 1, 0, 0), (0, 2, 1, 0), (0, 0, 0, 5))
    shadowed = logits((2.5, 1, 0, 0), (0, 1, 2, 0), (0, 0, 0.25, 5))
    assert Comparer(manifest, manifest).compare(answered, shadowed) == Comparison(2, 1.0)


def test_labels_in_another_order_are_compared_by_their_names(manifest: Manifest) -> None:
    turned = manifest.model_copy(update={"labels": manifest.labels[::-1]})
    answered = logits((3, 1, 0, -1), (0, 2, 1, 0.5))
    assert Comparer(manifest, turned).compare(answered, answered[:, ::-1]) == Comparison(2, 0.0)
    assert Comparer(manifest, turned).compare(answered, answered) == Comparison(0, 4.0)


def test_a_label_that_the_other_model_lacks_never_agrees_where_it_is_the_most_probable(manifest: Manifest) -> None:
    more = manifest.model_copy(update={"labels": ("violet", *manifest.labels)})
    answered = logits((3, 1, 0, 0), (3, 1, 0, 0))
    shadowed = logits((0, 3, 1, 0, 0), (9, 3, 1, 0, 0))
    assert Comparer(manifest, more).compare(answered, shadowed) == Comparison(1, 0.0)
    assert Comparer(more, manifest).compare(shadowed, answered) == Comparison(1, 0.0)


def test_labels_of_one_name_are_told_apart_by_their_order(manifest: Manifest) -> None:
    cranes = manifest.model_copy(update={"labels": ("crane", "crane", "dark", "red")})
    turned = manifest.model_copy(update={"labels": ("dark", "crane", "crane", "red")})
    answered = logits((1, 4, 2, 3))
    assert Comparer(cranes, turned).compare(answered, logits((2, 1, 4, 3))) == Comparison(1, 0.0)
    assert Comparer(cranes, turned).compare(answered, logits((2, 4, 1, 3))) == Comparison(0, 3.0)


def test_multi_label_models_agree_where_the_same_labels_hold(manifest: Manifest) -> None:
    several = manifest.model_copy(update={"task": "multi-label"})
    answered = logits((1, 2, -1, -1), (1, 2, -1, -1))
    # The most probable label differs in the first image, what holds in the second.
    shadowed = logits((2, 1, -1, -1), (1, 2, 0.5, -1))
    assert Comparer(several, several).compare(answered, shadowed) == Comparison(1, 1.5)
    more = several.model_copy(update={"labels": (*several.labels, "violet")})
    holds_more = logits((1, 2, -1, -1, 1), (1, 2, -1, -1, -1))
    assert Comparer(several, more).compare(answered, holds_more) == Comparison(1, 0.0)


def test_models_without_a_common_label_or_of_another_task_cannot_be_compared(manifest: Manifest) -> None:
    assert why_incomparable(manifest, manifest) is None
    others = manifest.model_copy(update={"name": "cats", "labels": ("cat", "lion")})
    assert "have no label in common: 'cat'" in (why_incomparable(manifest, others) or "")
    several = manifest.model_copy(update={"name": "several", "task": "multi-label"})
    assert why_incomparable(manifest, several) == "several:1 is multi-label, colours:1 single-label"


def test_rows_are_the_same_where_pictures_become_them_in_the_same_way(manifest: Manifest) -> None:
    def with_input(**changes: object) -> Manifest:
        return manifest.model_copy(update={"input": manifest.input.model_copy(update=changes)})

    assert takes_same_rows(manifest, with_input(name="pixels"))
    assert not takes_same_rows(manifest, with_input(width=9))
    assert not takes_same_rows(manifest, with_input(preprocessing=Preprocessing(resize_shorter_side=9)))
    other_mean = manifest.normalization.model_copy(update={"mean": (0.1, 0.1, 0.1)})
    # A graph that takes pixels normalises them itself.
    assert takes_same_rows(manifest, manifest.model_copy(update={"normalization": other_mean}))
    floats = {"dtype": "float32", "layout": "NCHW"}
    assert not takes_same_rows(
        with_input(**floats), with_input(**floats).model_copy(update={"normalization": other_mean})
    )
