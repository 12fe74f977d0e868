"""The judgement between two ways to take what nothing tells, without a network."""

import numpy as np
import pytest

from fuseline.export.assumptions.trials import Trial, is_clearly_better, is_more_than_smoothing


def trial(misfit: float | None, right: int | None = None, images: int = 100) -> Trial:
    """The first `right` of the images right."""
    shares = None if right is None else np.arange(images) < right
    return Trial({}, images, misfit, shares, np.zeros((images, 10), np.float32))


@pytest.mark.parametrize(
    ("one", "other", "clear"),
    [
        (trial(0.14), trial(0.35), True),
        (trial(0.14), trial(0.18), False),
        (trial(0.02), trial(0.04), False),
        (trial(0.14, 80), trial(0.35, 81), False),
        (trial(0.14, 80), trial(0.35, 20), True),
        (trial(0.34, 80), trial(0.35, 20), True),
        (trial(0.36, 80), trial(0.35, 20), False),
        (trial(0.34, 80), trial(0.35, 72), False),
        (trial(None, 80), trial(None, 20), True),
        (trial(None), trial(None), False),
    ],
)
def test_what_is_clear_and_what_is_chance(one: Trial, other: Trial, clear: bool) -> None:
    assert is_clearly_better(one, other) == clear
    assert not is_clearly_better(other, one)


def test_an_eps_that_only_smooths_is_no_finding() -> None:
    assert not is_more_than_smoothing(trial(0.08), trial(0.15))
    assert is_more_than_smoothing(trial(0.08), trial(0.35))
    assert is_more_than_smoothing(trial(0.08, 90), trial(0.15, 40))
