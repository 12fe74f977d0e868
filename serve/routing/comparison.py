"""Compares the logits of two models for the same images, class by class of the same label."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.model_package import Manifest

Logits = NDArray[np.float32]


class Comparison(NamedTuple):
    """How far a shadow's logits agree with those that were answered."""

    agreeing: int
    """Number of images with the same top-1 label; of a multi-label model, with the same labels of probability 0.5 or
    more."""
    difference: float
    """Largest absolute difference of two logits of the same label."""


def why_incomparable(answering: Manifest, shadow: Manifest) -> str | None:
    """Return why the answers of two models can't be compared; None: they can."""
    if answering.task != shadow.task:
        return f"{shadow.name}:{shadow.version} is {shadow.task}, {answering.name}:{answering.version} {answering.task}"
    if not set(answering.labels) & set(shadow.labels):
        return (
            f"{shadow.name}:{shadow.version} and {answering.name}:{answering.version} have no label in common: "
            f"{shadow.labels[0]!r} is the first of the former, {answering.labels[0]!r} of the latter"
        )
    return None


def takes_same_rows(one: Manifest, other: Manifest) -> bool:
    """Return whether both models take the same rows for a request, whatever their tensors are called."""
    same_input = one.input.model_copy(update={"name": other.input.name}) == other.input
    return same_input and (not one.input.format.normalised or one.normalization == other.normalization)


class Comparer:
    """Compares the answers of two models that `why_incomparable` allows."""

    def __init__(self, answering: Manifest, shadow: Manifest) -> None:
        self._is_multi_label = answering.task == "multi-label"
        self._shared: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
        if answering.labels != shadow.labels:
            place = {label: index for index, label in enumerate(_numbered(shadow.labels))}
            pairs = [(i, place[label]) for i, label in enumerate(_numbered(answering.labels)) if label in place]
            answered, shadowed = zip(*pairs, strict=True)
            self._shared = np.array(answered, np.intp), np.array(shadowed, np.intp)

    def compare(self, answered: Logits, shadowed: Logits) -> Comparison:
        """Return how far `shadowed` (images, its classes) agree with `answered` (images, classes); both are finite."""
        if self._shared is None:
            ours, theirs = answered, shadowed
            all_ours, all_theirs = ours, theirs
        else:
            ours, theirs = answered[:, self._shared[0]], shadowed[:, self._shared[1]]
            all_ours, all_theirs = answered, shadowed
        difference = float(np.abs(ours.astype(np.float64) - theirs).max())
        if self._is_multi_label:
            # A probability of 0.5 is a logit of 0. A label that only one of the models has may not hold.
            same = ((ours >= 0) == (theirs >= 0)).all(axis=1)
            same &= (all_ours >= 0).sum(axis=1) == (ours >= 0).sum(axis=1)
            same &= (all_theirs >= 0).sum(axis=1) == (theirs >= 0).sum(axis=1)
        else:
            same = ours.argmax(axis=1) == theirs.argmax(axis=1)
            # The most probable label of either may be one that the other doesn't have.
            same &= ours.max(axis=1) == all_ours.max(axis=1)
            same &= theirs.max(axis=1) == all_theirs.max(axis=1)
        return Comparison(int(same.sum()), difference)


def _numbered(labels: Sequence[str]) -> list[tuple[str, int]]:
    """Return each label with the number of equal ones before it: two classes of ImageNet are called crane."""
    seen: Counter[str] = Counter()
    numbered = []
    for label in labels:
        numbered.append((label, seen[label]))
        seen[label] += 1
    return numbered
