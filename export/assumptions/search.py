"""The search for the values that fit images best, one step at a time from what was assumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations

from fuseline.export.assumptions.training_statistics import USUAL_MISFIT
from fuseline.export.assumptions.trials import Trial, best_of, is_a_step, is_clearly_better, misfit_first

FEW = 8
"""Number of images that suffices to rule most values out."""
_MOST_STEPS = 6
_WORTH_A_LOOK = 1.5
MOST_TELLING_MISFIT = 2 * USUAL_MISFIT
"""Largest misfit that tells anything. A network that is used wrongly, or was never trained, fits nothing; a value that
fits still worse says nothing about it."""
_STRIDES = frozenset({"stride", "first-stage-stride", "stem-stride", "pool"})
"""Keys that are changed in pairs too: a larger stride in one place makes up for a smaller one in another."""


class Search:
    """A search that goes from one trial to what fits better; no trial is made twice.

    A step needs no clear gain: a stem of stride 2 and its max-pool may fit clearly better only together. The caller
    judges what all steps came to. For a network that already fits, one trial is followed; for one that doesn't, `width`
    trials at once, as several wrong values hide each other.

    Args:
        trial: makes the trial of some values on a number of images.
        alternatives: a key and its value to the other values in use.
        images: number of all images.
        on_progress: called with the share of the work that is done, 0 to 1.
    """

    def __init__(
        self,
        trial: Callable[[Mapping[str, str], int], Trial],
        alternatives: Callable[[str, str], Sequence[str]],
        images: int,
        on_progress: Callable[[float], None],
    ) -> None:
        self._make = cache(lambda values, images: trial(dict(values), images))
        self._alternatives = alternatives
        self._images = images
        self._on_progress = on_progress
        self.tried: dict[Trial, None] = {}
        """Trials in the order in which they were made: on all images, or on a few where these ruled a value out."""

    def trial(self, values: Mapping[str, str]) -> Trial:
        """Return the trial of `values` on all images."""
        return self._kept(self._make(tuple(values.items()), self._images))

    def glance(self, at: Trial) -> Trial:
        """Return the trial of the values of `at` on a few images."""
        return self._few(at.values)

    def is_whole(self, trial: Trial) -> bool:
        """Return whether `trial` ran on all images."""
        return trial.images == self._images

    def rivals(self, current: Trial) -> list[Trial]:
        """Return the trials that differ from `current` in one value; on a few images where these rule the value out."""
        few, changed = self.glance(current), list(self._changed(current, ""))
        found = []
        for done, values in enumerate(changed):
            glance = self._few(values)
            found.append(self.trial(values) if _is_worth_a_look(glance, few) else self._kept(glance))
            self._on_progress((done + 1) / len(changed) / 2)
        return found

    def climb(self, start: Trial, *, width: int, keep: str = "") -> None:
        """Try what fits better and better, by changing one value or two strides; the value of `keep` isn't changed."""
        best, beam = start, [start]
        seen = {tuple(start.values.items())}
        fits = start.misfit is None or start.misfit <= USUAL_MISFIT
        for step in range(_MOST_STEPS):
            changed = {tuple(values.items()): values for at in beam for values in self._changed(at, keep)}
            if width > 1:
                changed |= {tuple(values.items()): values for at in beam for values in self._other_strides(at)}
            glances = [self._few(values) for key, values in changed.items() if key not in seen]
            seen |= changed.keys()
            if start.misfit is not None:
                glances = sorted(glances, key=misfit_first)[: 1 if fits else width]
            beam = [self.trial(glance.values) for glance in glances]
            self._on_progress((1 + (step + 1) / _MOST_STEPS) / 2)
            if not any(is_a_step(trial, best) for trial in beam):
                break
            best = best_of([best, *beam])
            beam = sorted(beam, key=misfit_first)[: 1 if fits else width]

    def needed_of(self, best: Trial, assumed: Trial) -> Trial:
        """Return `best` without those changes from `assumed` each of which makes no clear difference by itself."""
        while changes := best.changes_from(assumed):
            without = [self.trial({**best.values, key: assumed.values[key]}) for key in changes]
            spare = [trial for trial in without if not is_clearly_better(best, trial)]
            if not spare:
                break
            best = best_of(spare)
        return best

    def _changed(self, at: Trial, keep: str) -> Iterator[dict[str, str]]:
        for key, value in at.values.items():
            if key != keep:
                yield from ({**at.values, key: other} for other in self._alternatives(key, value))

    def _other_strides(self, at: Trial) -> Iterator[dict[str, str]]:
        for one, other in combinations([key for key in at.values if key in _STRIDES], 2):
            for first in self._alternatives(one, at.values[one]):
                for second in self._alternatives(other, at.values[other]):
                    yield {**at.values, one: first, other: second}

    def _few(self, values: Mapping[str, str]) -> Trial:
        return self._make(tuple(values.items()), FEW)

    def _kept(self, trial: Trial) -> Trial:
        self.tried[trial] = None
        return trial


def _is_worth_a_look(glance: Trial, few: Trial) -> bool:
    """Return whether `glance`, on a few images, may fit better than `few`, the current trial on the same."""
    if glance.misfit is None or few.misfit is None:
        return True
    if few.misfit > MOST_TELLING_MISFIT:
        return is_a_step(glance, few)
    return glance.misfit <= _WORTH_A_LOOK * few.misfit
