"""The size of the images that a module is for: what a flag or the pictures say, or what the module itself tells.

A module whose last pool has a fixed window, or that flattens its last map into a linear layer, runs on pictures of one
size only, or uses all of its last map for one size only. Trying a number of sizes finds that size. A module that takes
any size, as everything that ends in an adaptive pool does, tells nothing. Where its first layers shrink the picture as
networks for ImageNet do, 224 is customary; it is assumed, and reported. A network for small pictures could be for 28,
32 or 64, and the wrong one costs most of its accuracy in silence, so nothing is assumed there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fuseline.export.recognition.modules.size_trials import CUSTOMARY_SIDE, CUSTOMARY_SIDES, SIDES, SizeTrials
from fuseline.export.recognition.naming.foreign_networks import PICTURES_ONLY
from fuseline.export.recognition.programs.pool_sizes import InputSizes
from fuseline.serve.errors import ArchitectureError, InputError
from fuseline.serve.model_package import Assumption

# Sizes that one fixed window or linear layer takes lie within a factor of 2, or below what a last map of 1 x 1 takes.
_SPREAD = 2
_SMALLEST_SPREAD = 32
_ALTERNATIVES = (256, 288, 299, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleInputSize:
    """The size of the images that a module takes, and how it was found."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    channels: int
    implied: tuple[int, int] | None = None
    """`size` where the module or the user's pictures tell it; None where a flag, the checkpoint or custom says it."""
    evidence: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()


def input_size_of(
    module: nn.Module, reference: str, *, chosen: tuple[int, int] | None, shared: tuple[int, int] | None
) -> ModuleInputSize:
    """Return the size of the images that `module`, in eval mode and built by --factory `reference`, is for.

    Args:
        module: the module, which is run on pictures of many sizes unless `chosen` is given.
        reference: the factory, for messages.
        chosen: (height, width) that a flag or the checkpoint says; it holds.
        shared: (height, width) that all of the user's pictures have. It holds where the module takes it; networks as
            for ImageNet take it only up to 224 x 224, as larger photographs are customarily resized and cropped.

    Raises:
        InputError: nothing tells the size and none is customary, or the module takes no size that was tried.
        ArchitectureError: the module is for sounds or volumes.
    """
    trials = SizeTrials(module, chosen or shared)
    if chosen is not None:
        return ModuleInputSize(size=chosen, channels=trials.channels)
    fitting = trials.fitting_sides()
    if not fitting and not (shared and trials.at(shared).classes):
        return _nothing_fits(trials, reference)
    implied = fitting if _is_narrow(fitting) else ()
    if shared is not None and trials.fits(shared, implied):
        height, width = shared
        if implied or not trials.is_as_for_imagenet or height == width <= CUSTOMARY_SIDE:
            return ModuleInputSize(
                size=shared,
                channels=trials.channels,
                implied=shared,
                evidence=(f"the given pictures are all of {height} x {width} pixels, and the module takes that size",),
            )
    if implied:
        return _from_sides(implied, trials, reference)
    if trials.channels == 3 and trials.is_as_for_imagenet and CUSTOMARY_SIDE in fitting:
        shared_side = (shared[0],) if shared and shared[0] == shared[1] else ()
        alternatives = dict.fromkeys((*shared_side, *_ALTERNATIVES))
        why = f"{trials.first_convolution} and the layers behind it shrink the picture as networks for ImageNet do"
        return ModuleInputSize(
            size=(CUSTOMARY_SIDE, CUSTOMARY_SIDE),
            channels=trials.channels,
            assumptions=(
                _assumption(CUSTOMARY_SIDE, alternatives, f"{why}, though it takes pictures of other sizes too"),
            ),
        )
    raise InputError(
        f"nothing tells the size of the images that --factory {reference} is for, and its network takes more than one: "
        f"{trials.description}. {_cure(trials.channels)}"
    )


def size_from_pool(sizes: InputSizes, channels: int) -> tuple[tuple[int, int] | None, tuple[Assumption, ...]]:
    """Return the (height, width) that a pool tells, and what is assumed where it covers several customary sizes.

    Where `channels` is 1 and there are several, the size is None: grey digits have 28 x 28 as often as 32 x 32.
    """
    customary = [side for side in CUSTOMARY_SIDES if sizes.take((side, side))]
    if not customary or len(set(sizes.usual)) > 1:
        return sizes.usual, ()
    side = max(customary, key=lambda number: number & -number)
    if len(customary) == 1:
        return (side, side), ()
    if channels == 1:
        return None, ()
    described = f"those of {sizes.smallest[0]} to {sizes.largest[0]} pixels"
    why = f"the pool before the classifier covers the last map of all of {described}"
    return (side, side), (_assumption(side, [other for other in customary if other != side], why),)


def _is_narrow(sides: tuple[int, ...]) -> bool:
    return bool(sides) and sides != SIDES and sides[-1] <= max(_SPREAD * sides[0], _SMALLEST_SPREAD)


def _from_sides(sides: tuple[int, ...], trials: SizeTrials, reference: str) -> ModuleInputSize:
    """Return the input size of a module that takes only `sides`: the customary side that halves most often evenly."""
    customary = [side for side in sides if side in CUSTOMARY_SIDES] or list(sides)
    described = _described(sides)
    if len(customary) > 1 and trials.channels == 1:
        raise InputError(
            f"the network of --factory {reference} is for images of one size, but the sizes {described} all go through "
            f"it. Say which its training had: {' or '.join(f'--input-size {side}' for side in customary)}; or export "
            "with --images DIR whose pictures all have that size"
        )
    side = max(customary, key=lambda number: number & -number)
    others = [other for other in customary if other != side]
    why = f"of the square images that were tried, only {described} go whole through its layers"
    return ModuleInputSize(
        size=(side, side),
        channels=trials.channels,
        implied=(side, side),
        evidence=(f"{why}: a pool of a fixed window, or a layer that takes a last map of one size, says so",),
        assumptions=(_assumption(side, others, why),) if others else (),
    )


def _nothing_fits(trials: SizeTrials, reference: str) -> ModuleInputSize:
    sizes = [(side, side) for side in SIDES]
    if returned := [size for size in sizes if trials.at(size).returned_no_rows]:
        # The trial of its logits says what is wrong with that.
        return ModuleInputSize(size=returned[-1], channels=trials.channels)
    failure = trials.at((CUSTOMARY_SIDE, CUSTOMARY_SIDE)).failure
    if dimensional := re.search(r"\bconv[13]d\b", failure):
        raise ArchitectureError(f"the network of --factory {reference} begins with a {dimensional[0]}. {PICTURES_ONLY}")
    raise InputError(
        f"the network of --factory {reference} takes none of the square images that were tried, of {SIDES[0]} to "
        f"{SIDES[-1]} pixels and {trials.channels} channel{'s'[: trials.channels != 1]}: at {CUSTOMARY_SIDE} x "
        f"{CUSTOMARY_SIDE} {failure}. It must take normalised float32 images (rows, channels, height, width); name the "
        "size of its training: --input-size HEIGHTxWIDTH"
    )


def _assumption(side: int, others: Iterable[int], why: str) -> Assumption:
    return Assumption(
        key="size",
        value=str(side),
        meaning=f"images of {side} x {side} pixels, since {why}",
        alternatives=tuple(str(other) for other in others),
        flag="--input-size N",
    )


def _cure(channels: int) -> str:
    sides = "28 (32, 64, 224" if channels == 1 else "32 (28, 64, 224"
    return (
        f"Say the size of the training: --input-size {sides} or whatever it was); or export with --images DIR whose "
        "pictures all have that size"
    )


def _described(sides: tuple[int, ...]) -> str:
    return f"{sides[0]} x {sides[0]}" if len(sides) == 1 else ", ".join(map(str, sides))
