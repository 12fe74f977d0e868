"""How one way to take what nothing tells fits the images, and when another fits clearly better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.export.assumptions.training_statistics import USUAL_MISFIT

_CLEARLY = 0.7
"""A misfit of at most so much of another's is clearly better. The trained ResNet-20: 0.30 with the shortcut that it was
trained with, of what another that is in use gives, 0.65 with the stride on the right convolution; 0.87 with its
normalisation, of CIFAR-10's, which costs one picture in 125."""
_LEAST_GAIN = 0.05
_MORE_THAN_SMOOTHING = 0.4
_STEP = 0.9
_LEAST_STEP = 0.03
_SAME_LOGITS = 1e-3
"""Of the logits' range: a difference that changes no answer."""
_LEAST_LIFT = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What the witnesses say of one way to take what is open."""

    values: Mapping[str, str]
    """By key of the assumption."""
    images: int
    misfit: float | None
    """As `TrainingStatistics.misfit`; None of a network without BatchNorms or on too few images."""
    right: NDArray[np.bool_] | None
    """(images,): whether the top-1 class is the folder's; None if nothing tells the classes."""
    logits: NDArray[np.float32]

    def changes_from(self, other: "Trial") -> dict[str, str]:
        """What it takes in another way than `other` does, by key."""
        return {key: value for key, value in self.values.items() if other.values[key] != value}

    @property
    def accuracy(self) -> float | None:
        """Share of images whose class is right."""
        return None if self.right is None else float(self.right.mean())

    @property
    def described(self) -> str:
        """For people: both figures."""
        told = [] if self.misfit is None else [f"misfit {self.misfit:.2f}"]
        told += [] if self.accuracy is None else [f"{self.accuracy:.1%} right"]
        return f"{', '.join(told) or 'not comparable'} on {self.images} images"


def is_clearly_better(one: Trial, other: Trial) -> bool:
    """Whether the witnesses prefer `one` beyond chance; both are of the same images."""
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
    """Whether `one` is so much better that it isn't only its larger eps, which draws all activations together.

    An untrained ResNet-50 on the pictures that its statistics are of: 0.15, and 0.08 with 1e-3 instead of its own 1e-5.
    """
    if one.misfit is None or other.misfit is None:
        return lifts(one, other)
    return lifts(one, other) or one.misfit <= _MORE_THAN_SMOOTHING * other.misfit


def is_a_step(one: Trial, other: Trial) -> bool:
    """Whether `one` fits a little better, or clearly: worth a look at what else goes with it."""
    if one.misfit is None or other.misfit is None:
        return is_clearly_better(one, other)
    fits = one.misfit <= _STEP * other.misfit and other.misfit - one.misfit >= _LEAST_STEP
    return fits or is_clearly_better(one, other)


def lifts(one: Trial, other: Trial) -> bool:
    """Whether `one` gets far more right, and the BatchNorms don't speak against it."""
    fits = one.misfit is None or other.misfit is None or one.misfit <= other.misfit
    return fits and _gets_far_more_right(one, other)


def _gets_far_more_right(one: Trial, other: Trial) -> bool:
    if one.right is None or other.right is None:
        return False
    gained, lost = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
    return bool(gained - lost >= max(3 * np.sqrt(gained + lost), _LEAST_LIFT * len(one.right)))


def is_plausible(best: Trial, assumed: Trial) -> bool:
    """Whether `best` is about what a network does that is used as it was trained."""
    if best.misfit is None:
        return True
    return best.misfit <= USUAL_MISFIT or (best.misfit <= 2 * USUAL_MISFIT and lifts(best, assumed))


def same_logits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether no logit (rows, classes) differs by what could change an answer."""
    return float(np.abs(one - other).max()) <= _SAME_LOGITS * float(np.ptp(one))


def misfit_first(trial: Trial) -> tuple[float, float]:
    """What trials are sorted by: the one that fits best comes first."""
    return (trial.misfit if trial.misfit is not None else 0.0, -(trial.accuracy or 0.0))


def best_of(trials: Sequence[Trial]) -> Trial:
    """The one that fits best, unless another gets far more right."""
    best = min(trials, key=misfit_first)
    return next((trial for trial in trials if lifts(trial, best)), best)
