"""Comparison of what was assumed with the other values in use, by two witnesses.

The witnesses are the statistics that BatchNorms carry from the training
(`fuseline.export.assumptions.training_statistics`) and, where images lie in folders of their classes, how many of them
the network gets right. Each other value of each open assumption is tried, and combinations of them by
`fuseline.export.assumptions.search`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.export.assumptions.assumptions import is_by_flag
from fuseline.export.assumptions.search import FEW, MOST_TELLING_MISFIT, Search
from fuseline.export.assumptions.training_statistics import MAX_IMAGES, MIN_IMAGES, observed
from fuseline.export.assumptions.trials import (
    Trial,
    best_of,
    is_clearly_better,
    is_more_than_smoothing,
    is_plausible,
    misfit_first,
    same_logits,
)
from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.eager import normalised
from fuseline.export.facts.input_size import input_size_from_text
from fuseline.export.facts.model_facts import SIZE, ModelFacts, size_as_text, with_input_size
from fuseline.export.facts.normalizations import KEY as NORMALIZATION
from fuseline.export.facts.normalizations import customary, normalization_named
from fuseline.export.network import TrainedNetwork
from fuseline.export.recognition.architectures import Recognised, with_values
from fuseline.export.recognition.choices import choices_in
from fuseline.export.sample import ImageFolder
from fuseline.serve.model_package import InputSpec

_MOST_WIDTH = 4
_SMALL_SIDE = 64
_CUSTOMARY_SIDES = (28, 32, 64, 128, 224, 256)
_MOST_SIDE = 512
_BUDGET_PIXELS = 16 * 224 * 224
_MOST_LABELLED = 200
_ABOUT_AS_WELL = 1.1
_LEANS = 0.9


@dataclass(frozen=True, slots=True)
class Findings:
    """What the witnesses say about the open assumptions."""

    assumed: Trial
    best: Trial
    """`assumed` itself where nothing fits clearly better."""
    settled: Mapping[str, str] = field(default_factory=dict)
    """Key of an assumption to the reason why no other value comes into question."""
    leanings: tuple[str, ...] = ()
    """Sentences: what fits better than `best`, but not clearly."""
    tried: tuple[Trial, ...] = ()
    """All trials but `assumed`, in the order in which they were made."""

    @property
    def changes(self) -> dict[str, str]:
        """Key to the value that fits clearly better than the assumed one."""
        return self.best.changes_from(self.assumed)

    @property
    def table(self) -> tuple[dict[str, Any], ...]:
        """Rows of the report, a trial each: `changes` (text, empty for `assumed`), `misfit`, `accuracy`, `images`."""
        return tuple(
            {
                "changes": ", ".join(f"{key}={value}" for key, value in trial.changes_from(self.assumed).items()),
                "misfit": trial.misfit,
                "accuracy": trial.accuracy,
                "images": trial.images,
            }
            for trial in (self.assumed, *self.tried)
        )


@dataclass(frozen=True)
class Witnesses:
    """A network, images that bear witness to how it was trained, and the assumptions about it."""

    trained: TrainedNetwork
    facts: ModelFacts
    checkpoint: Checkpoint
    images: ImageFolder
    truth: NDArray[np.int64] | None = None
    """Class of each image, (n,)."""
    doubt_flags: bool = False
    """Whether other values are also tried for what a flag says."""
    _pixels: dict[tuple[InputSpec, int], NDArray[np.uint8]] = field(default_factory=dict)
    """Decoded images; `dataclasses.replace` passes them on, so that each is decoded once."""

    def ask(self, on_progress: Callable[[float], None] = lambda _: None) -> Findings | None:
        """Compare what was assumed with the other values in use; None where no witness can speak."""
        if len(self.images.files) < MIN_IMAGES:
            return None
        doubted = (a for a in self.facts.assumptions if a.is_open or (self.doubt_flags and is_by_flag(a)))
        start = {a.key: a.value for a in doubted if self._alternatives(a.key, a.value)}
        search = Search(self._trial, self._alternatives, self._count(), on_progress)
        assumed = search.trial(start)
        if assumed.misfit is None and assumed.right is None:
            return None
        rivals = search.rivals(assumed)
        search.climb(assumed, width=self._width(start))
        if (shared := self._smaller_shared_size(start)) is not None:
            search.climb(search.trial({**start, SIZE: shared}), width=self._width({SIZE: shared}), keep=SIZE)
        best = search.needed_of(best_of([trial for trial in search.tried if search.is_whole(trial)]), assumed)
        if "eps" in best.changes_from(assumed):
            without = search.trial({**best.values, "eps": assumed.values["eps"]})
            best = best if is_more_than_smoothing(best, without) else without
        tried = tuple(trial for trial in search.tried if trial is not assumed)
        if best is not assumed and is_clearly_better(best, assumed):
            if is_plausible(best, assumed):
                return Findings(assumed, best, tried=tried)
            return Findings(assumed, assumed, leanings=(_nearest(best, assumed),), tried=tried)
        speaks = assumed.misfit is None or assumed.misfit <= MOST_TELLING_MISFIT
        settled = _settled(assumed, rivals, search.glance(assumed)) if speaks else {}
        return Findings(assumed, assumed, settled, tuple(_leanings(assumed, rivals, settled)), tried)

    def _smaller_shared_size(self, start: Mapping[str, str]) -> str | None:
        """Return the size that all images have, if they would be enlarged.

        The search starts from it too, as it fits only with the strides that go with it.
        """
        shared, spec = self.images.shared_size, self.facts.input
        if shared is None or SIZE not in start or max(shared) >= max(spec.height, spec.width):
            return None
        return size_as_text(shared)

    def _width(self, values: Mapping[str, str]) -> int:
        """Return how many trials a step follows at once: one for large pictures, as each costs seconds."""
        spec = self.facts.input
        height, width = input_size_from_text(values[SIZE]) if SIZE in values else (spec.height, spec.width)
        return max(1, min(_MOST_WIDTH, _MOST_WIDTH * _SMALL_SIDE**2 // (height * width)))

    def prefers_shared_size(self, shared: tuple[int, int]) -> bool:
        """Return whether `shared`, the size that all images have, fits about as well as the assumed one, or better."""
        start = {a.key: a.value for a in self.facts.assumptions if a.key == SIZE}
        assumed, other = (self._trial(values, self._count()) for values in (start, {SIZE: size_as_text(shared)}))
        if assumed.misfit is None or other.misfit is None:
            return True
        return other.misfit <= _ABOUT_AS_WELL * assumed.misfit or is_clearly_better(other, assumed)

    def _alternatives(self, key: str, value: str) -> tuple[str, ...]:
        return tuple(other for other in self._usual(key) if other != value)

    def _usual(self, key: str) -> Iterator[str]:
        if key == NORMALIZATION:
            yield from customary(self.facts.input.channels)
        elif key == SIZE:
            yield from dict.fromkeys(map(size_as_text, self._sizes()))
        elif isinstance(self.trained, Recognised):
            yield from next((choice.usual for choice in choices_in(self.trained.spec) if choice.key == key), ())

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Yield the size that all images share, and the customary ones that cost not much more than the assumed one."""
        if (shared := self.images.shared_size) is not None and max(shared) <= _MOST_SIDE:
            yield shared
        most = 2 * max(self.facts.input.height, self.facts.input.width)
        yield from ((side, side) for side in _CUSTOMARY_SIDES if side <= most)

    def _count(self) -> int:
        """Return how many images a trial runs: more if they are small."""
        spec = self.facts.input
        most = MAX_IMAGES if self.truth is None else _MOST_LABELLED
        return max(FEW, min(most, _BUDGET_PIXELS // (spec.height * spec.width), len(self.images.files)))

    def _trial(self, values: Mapping[str, str], count: int) -> Trial:
        facts = self.facts
        if SIZE in values and values[SIZE] != size_as_text((facts.input.height, facts.input.width)):
            facts = with_input_size(facts, self.checkpoint, input_size_from_text(values[SIZE]))
        normalization = facts.normalization
        if (name := values.get(NORMALIZATION)) in customary(facts.input.channels):
            normalization = normalization_named(name or "", facts.input.channels)
        indices = self.images.spread(count)
        module = self.trained.module
        if isinstance(self.trained, Recognised):
            module = with_values(self.trained, values)
        if (key := (facts.input, count)) not in self._pixels:
            self._pixels[key] = self.images.pixels(facts.input, indices)
        pixels = self._pixels[key]
        logits, statistics = observed(module, normalised(pixels, normalization))
        right = None if self.truth is None else logits.argmax(1).numpy() == self.truth[indices]
        misfit = None if statistics is None or len(indices) < MIN_IMAGES else statistics.misfit
        return Trial(values, len(indices), misfit, right, logits.numpy())


def _settled(current: Trial, rivals: list[Trial], few: Trial) -> dict[str, str]:
    """Return the keys whose other values are all clearly worse than that of `current`, or change nothing: key -> why.

    Args:
        few: `current` on a few images, for the rivals that ran on a few.
    """
    settled = {}
    for key, value in current.values.items():
        others = [rival for rival in rivals if rival.values[key] != value]
        peers = [current if other.images == current.images else few for other in others]
        worse = [other for other, peer in zip(others, peers, strict=True) if is_clearly_better(peer, other)]
        same = [other for other, peer in zip(others, peers, strict=True) if same_logits(peer.logits, other.logits)]
        if not others or len(worse) + sum(other not in worse for other in same) < len(others):
            continue
        nearest = min(worse, key=misfit_first, default=None)
        if nearest is None:
            settled[key] = f"images: {', '.join(other.values[key] for other in others)} changes no answer"
        else:
            peer = peers[others.index(nearest)]
            settled[key] = f"images: {peer.described}; with {nearest.values[key]} {nearest.described}"
    return settled


def _leanings(current: Trial, rivals: list[Trial], settled: Mapping[str, str]) -> Iterator[str]:
    """Yield sentences: which value of a key that stays open fits the images better, but not clearly."""
    for key, value in current.values.items():
        others = [r for r in rivals if r.values[key] != value and r.images == current.images and r.misfit is not None]
        best = min(others, key=lambda rival: rival.misfit or 0.0, default=None)
        if key in settled or best is None or best.misfit is None or current.misfit is None:
            continue
        if best.misfit <= _LEANS * current.misfit:
            yield (
                f"the images fit {key}={best.values[key]} a little better ({best.described}) than {key}={value} "
                f"({current.described}), too little to tell"
            )


def _nearest(best: Trial, assumed: Trial) -> str:
    changes = ", ".join(f"{key}={value}" for key, value in best.changes_from(assumed).items())
    return (
        f"nothing that is in use fits the images as the training's own did; nearest is {changes} ({best.described}, "
        f"as assumed {assumed.described})"
    )
