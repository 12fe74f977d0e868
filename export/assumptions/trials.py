"""Trials: how well some values of the open assumptions fit the images, and when others fit clearly better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.export.assumptions.training_statistics import USUAL_MISFIT

_CLEARLY = 0.7
"""Largest ratio of two misfits of which the smaller is clearly better. For the trained ResNet-20 the ratio of the right
value's misfit to another value's is 0.30 for the shortcut and 0.65 for the convolution that has the stride; it is 0.87
for its own normalisation to CIFAR-10's, which costs one picture in 125."""
_LEAST_GAIN = 0.05
_MORE_THAN_SMOOTHING = 0.4
_STEP = 0.9
_LEAST_STEP = 0.03
_SAME_LOGITS = 1e-3
"""Largest difference, as a share of the logits' range, that changes no answer."""
_LEAST_LIFT = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What the witnesses say about one set of values of the open assumptions."""

    values: Mapping[str, str]
    """Key of an assumption to its value."""
    images: int
    """Number of images that were run."""
    misfit: float | None
    """`TrainingStatistics.misfit`; None without BatchNorms, or on too few images."""
    right: NDArray[np.bool_] | None
    """Whether each image's top-1 class is its folder's, (images,); None if nothing tells the classes."""
    logits: NDArray[np.float32]
    """(images, classes)."""

    def changes_from(self, other: "Trial") -> dict[str, str]:
        """Return the values that differ from those of `other`, by key."""
        return {key: value for key, value in self.values.items() if other.values[key] != value}

    @property
    def accuracy(self) -> float | None:
        """Share of images whose class is right."""
        return None if self.right is None else float(self.right.mean())

    @property
    def described(self) -> str:
        """Misfit and accuracy, for people."""
        figures = [] if self.misfit is None else [f"misfit {self.misfit:.2f}"]
        figures += [] if self.accuracy is None else [f"{self.accuracy:.1%} right"]
        return f"{', '.join(figures) or 'not comparable'} on {self.images} images"


def is_clearly_better(one: Trial, other: Trial) -> bool:
    """Return whether the witnesses prefer `one` beyond chance; both ran on the same images."""
    fits = (
        one.misfit is not None
        and other.misfit is not None
        and one.misfit <= _CLEARLY * other.misfit
        and other.misfit - one.misfit >= _LEAST_GAIN
    )
    if one.right is None or other.right is None:
        return fits
    gained, lost = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
    return (fits and gained >= lost) or lifts(one, other)


def is_more_than_smoothing(one: Trial, other: Trial) -> bool:
    """Return whether `one` is so much better that its larger eps, which draws all activations together, isn't why.

    An untrained ResNet-50, on the pictures that its statistics were taken from, has a misfit of 0.15, and of 0.08 with
    1e-3 instead of its own 1e-5.
    """
    if one.misfit is None or other.misfit is None:
        return lifts(one, other)
    return lifts(one, other) or one.misfit <= _MORE_THAN_SMOOTHING * other.misfit


def is_a_step(one: Trial, other: Trial) -> bool:
    """Return whether `one` fits a little or clearly better, so that changes which go with it are worth trying."""
    if one.misfit is None or other.misfit is None:
        return is_clearly_better(one, other)
    fits = one.misfit <= _STEP * other.misfit and other.misfit - one.misfit >= _LEAST_STEP
    return fits or is_clearly_better(one, other)


def lifts(one: Trial, other: Trial) -> bool:
    """Return whether `one` gets far more right, and the BatchNorms don't speak against it."""
    fits = one.misfit is None or other.misfit is None or one.misfit <= other.misfit
    return fits and _gets_far_more_right(one, other)


def _gets_far_more_right(one: Trial, other: Trial) -> bool:
    if one.right is None or other.right is None:
        return False
    gained, lost = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
    return bool(gained - lost >= max(3 * np.sqrt(gained + lost), _LEAST_LIFT * len(one.right)))


def is_plausible(best: Trial, assumed: Trial) -> bool:
    """Return whether `best` fits about as well as a network does that is used as it was trained."""
    if best.misfit is None:
        return True
    return best.misfit <= USUAL_MISFIT or (best.misfit <= 2 * USUAL_MISFIT and lifts(best, assumed))


def same_logits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Return whether no logit (rows, classes) differs so much that an answer could change."""
    return float(np.abs(one - other).max()) <= _SAME_LOGITS * float(np.ptp(one))


def misfit_first(trial: Trial) -> tuple[float, float]:
    """Return the key to sort trials by, the one that fits best first."""
    return (trial.misfit if trial.misfit is not None else 0.0, -(trial.accuracy or 0.0))


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial that fits best, unless another gets far more right."""
    best = min(trials, key=misfit_first)
    return next((trial for trial in trials if lifts(trial, best)), best)
