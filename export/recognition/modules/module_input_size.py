"""The size of the images that a module at hand is for: what a flag or pictures say, or what the module itself tells.

A module whose last pool has a fixed window, or that flattens its last map into a linear layer, runs on pictures of one
size only, or uses all of its last map for one size only. Trying a number of sizes finds that size. One that takes any
size, as everything that ends in an adaptive pool does, tells nothing: where its first layers shrink the picture as
networks for ImageNet do, 224 is customary and assumed aloud; a network for small pictures could be for 28, 32 or 64,
and the wrong one costs most of its accuracy in silence, so there nothing is assumed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fuseline.export.recognition.modules.module_looks import Look, look_at
from fuseline.export.recognition.naming.foreign_networks import PICTURES_ONLY
from fuseline.export.recognition.programs.pool_sizes import InputSizes
from fuseline.serve.errors import ArchitectureError, InputError
from fuseline.serve.model_package import Assumption

CUSTOMARY_SIDE = 224
"""Pixels, of networks for ImageNet."""

_CUSTOMARY = (28, 32, 64, 96, 128, 160, 192, CUSTOMARY_SIDE, 256, 288, 299, 320, 384, 448, 512)
_OTHERS = (8, 16, 24, 40, 48, 56, 80, 84, 100, 112, 144, 150, 176, 200, 227, 240, 300, 331)
_SIDES = tuple(sorted((*_CUSTOMARY, *_OTHERS)))
# A module that takes all of them and cuts none of its maps takes any size.
_FIRST_SIDES = (64, 96, 160)
# Sizes that one fixed window or linear layer takes lie within a factor of 2, or below what a last map of 1 x 1 takes.
_SPREAD = 2
_SMALLEST_SPREAD = 32
_STEM_CONVOLUTIONS = 4
_STEM_STRIDE = 4
_TOTAL_STRIDE = 32
_ALTERNATIVES = (256, 288, 299, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleInputSize:
    """What the module takes."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    channels: int
    told: tuple[int, int] | None = None
    """`size` where the module or the user's pictures tell it; None where a flag, the checkpoint or custom says it."""
    evidence: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()


def input_size_of(
    module: nn.Module, reference: str, *, said: tuple[int, int] | None, shared: tuple[int, int] | None
) -> ModuleInputSize:
    """The images that `module`, in eval mode and built by --factory `reference`, is for.

    Args:
        module: is run on pictures of many sizes unless `said` is there.
        reference: for messages.
        said: (height, width) that a flag or the checkpoint says; it holds.
        shared: (height, width) of all the pictures that the user has given. It holds where the module takes it, but for
            networks as for ImageNet only up to 224 x 224: larger photographs are customarily resized and cropped.

    Raises:
        InputError: nothing tells the size and none is customary, or the module takes no size that was tried.
        ArchitectureError: it is for sounds or volumes.
    """
    looks = _Looks(module, said or shared)
    if said is not None:
        return ModuleInputSize(size=said, channels=looks.channels)
    fitting = looks.fitting_sides()
    if not fitting and not (shared and looks.at(shared).classes):
        return _nothing_fits(looks, reference)
    told = fitting if _is_narrow(fitting) else ()
    if shared is not None and looks.fits(shared, told):
        height, width = shared
        if told or not looks.is_as_for_imagenet or height == width <= CUSTOMARY_SIDE:
            return ModuleInputSize(
                size=shared,
                channels=looks.channels,
                told=shared,
                evidence=(f"the given pictures are all of {height} x {width} pixels, and the module takes that size",),
            )
    if told:
        return _told(told, looks, reference)
    if looks.channels == 3 and looks.is_as_for_imagenet and CUSTOMARY_SIDE in fitting:
        shared_side = (shared[0],) if shared and shared[0] == shared[1] else ()
        alternatives = dict.fromkeys((*shared_side, *_ALTERNATIVES))
        why = f"{looks.first_convolution} and the layers behind it shrink the picture as networks for ImageNet do"
        return ModuleInputSize(
            size=(CUSTOMARY_SIDE, CUSTOMARY_SIDE),
            channels=looks.channels,
            assumptions=(
                _assumption(CUSTOMARY_SIDE, alternatives, f"{why}, though it takes pictures of other sizes too"),
            ),
        )
    raise InputError(
        f"nothing tells the size of the images that --factory {reference} is for, and its network takes more than one: "
        f"{looks.description}. {_cure(looks.channels)}"
    )


def told_size(sizes: InputSizes, channels: int) -> tuple[tuple[int, int] | None, tuple[Assumption, ...]]:
    """The size that a pool tells, and what is assumed where it takes several customary ones.

    None for grey pictures, of 1 of `channels`, where there are several: digits have 28 x 28 as often as 32 x 32.
    """
    customary = [side for side in _CUSTOMARY if sizes.take((side, side))]
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


class _Looks:
    """A module run on pictures of many sizes, on each once."""

    def __init__(self, module: nn.Module, size: tuple[int, int] | None) -> None:
        self._module = module
        self._looks: dict[tuple[int, int], Look] = {}
        self.channels = 3
        self._find_channels(size or (_FIRST_SIDES[0], _FIRST_SIDES[0]), size)

    def at(self, size: tuple[int, int]) -> Look:
        """Of pictures of `size` (height, width)."""
        if size not in self._looks:
            self._looks[size] = look_at(self._module, self.channels, size)
        return self._looks[size]

    def fitting_sides(self) -> tuple[int, ...]:
        """The sides in pixels of squares that the module takes whole: ascending, of those that are tried."""
        first = [self.at((side, side)) for side in _FIRST_SIDES]
        if all(look.classes and _is_whole(look) for look in first) and len({look.classes for look in first}) == 1:
            return _SIDES
        return self._whole(side for side in _SIDES if self.at((side, side)).classes)

    def fits(self, size: tuple[int, int], told: tuple[int, ...]) -> bool:
        """Whether it takes `size` whole, too, beside the squares of the sides `told`."""
        look = self.at(size)
        if not look.classes:
            return False
        others = [self.at((side, side)) for side in told]
        return not told or (_is_whole(look) and look.classes == others[0].classes)

    def _whole(self, sides: Iterable[int]) -> tuple[int, ...]:
        """Those for which no row or column of the last map is left out, if there are any."""
        looks = {side: self.at((side, side)) for side in sides}
        if not looks:
            return ()
        # A classifier that is a convolution gives more logits the larger the picture is.
        fewest = min(look.classes or 0 for look in looks.values())
        looks = {side: look for side, look in looks.items() if look.classes == fewest}
        whole = tuple(side for side, look in looks.items() if _is_whole(look))
        return whole or tuple(looks)

    @property
    def is_as_for_imagenet(self) -> bool:
        """Whether the first convolution strides and the picture shrinks by 4 before the blocks or by 32 in all."""
        look = self.at((CUSTOMARY_SIDE, CUSTOMARY_SIDE))
        convolutions = look.convolutions
        if not convolutions or max(convolutions[0].stride) < 2:
            return False
        # Gates and classifiers that are convolutions run on maps of 1 x 1, which an adaptive pool makes of any.
        last = min((step.out_height for step in convolutions if step.in_height > 1), default=CUSTOMARY_SIDE)
        return _stem_stride(look) >= _STEM_STRIDE or round(CUSTOMARY_SIDE / last) >= _TOTAL_STRIDE

    @property
    def first_convolution(self) -> str:
        """For people."""
        for look in self._looks.values():
            if look.convolutions:
                first = look.convolutions[0]
                return f"its first convolution is {_by(first.kernel)} with stride {_stride(first.stride)}"
        return "it has no convolution"

    @property
    def description(self) -> str:
        """For people: what was seen of it that keeps 224 from being assumed."""
        if self.is_as_for_imagenet:
            return f"{self.first_convolution}, but its images have {self.channels} channel{'s'[: self.channels != 1]}"
        first = next((look.convolutions[0] for look in self._looks.values() if look.convolutions), None)
        small = first is not None and max(first.stride) == 1
        return f"{self.first_convolution}{', as networks for small pictures have' if small else ''}"

    def _find_channels(self, size: tuple[int, int], required: tuple[int, int] | None) -> None:
        """Those with which the first convolution runs, which need not be the first that the module lists."""
        listed = [child.in_channels for child in self._module.modules() if isinstance(child, nn.Conv2d)]
        self.channels = listed[0] if listed else 3
        tried = {self.channels: self.at(size)}
        if not tried[self.channels].steps and tried[self.channels].first_convolution_takes is None and not listed:
            # No convolution at all: a linear layer on the pixels.
            for channels in (3, 1):
                self._look_anew(channels)
                sides = [required] if required else [(side, side) for side in _SIDES]
                if any(self.at(side).classes for side in sides):
                    return
            self._look_anew(3)
            return
        executed = tried[self.channels].first_convolution_takes
        for channels in (self.channels, *((executed,) if executed else ()), 3, 1):
            if channels not in tried:
                self._look_anew(channels)
                tried[channels] = self.at(size)
            if tried[channels].convolutions:
                self.channels = channels
                self._looks = {size: tried[channels]}
                return
        self._look_anew(listed[0] if listed else 3)

    def _look_anew(self, channels: int) -> None:
        self.channels = channels
        self._looks = {}


def _is_whole(look: Look) -> bool:
    """Whether the last pool takes all of its map."""
    return look.last_pool is None or not look.last_pool.cuts


def _is_narrow(sides: tuple[int, ...]) -> bool:
    return bool(sides) and sides != _SIDES and sides[-1] <= max(_SPREAD * sides[0], _SMALLEST_SPREAD)


def _told(sides: tuple[int, ...], looks: _Looks, reference: str) -> ModuleInputSize:
    """By a module that takes only `sides`: the customary one; of several that which halves most often without rest."""
    customary = [side for side in sides if side in _CUSTOMARY] or list(sides)
    described = _described(sides)
    if len(customary) > 1 and looks.channels == 1:
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
        channels=looks.channels,
        told=(side, side),
        evidence=(f"{why}: a pool of a fixed window, or a layer that takes a last map of one size, says so",),
        assumptions=(_assumption(side, others, why),) if others else (),
    )


def _nothing_fits(looks: _Looks, reference: str) -> ModuleInputSize:
    sizes = [(side, side) for side in _SIDES]
    if returned := [size for size in sizes if looks.at(size).returned_no_rows]:
        # The trial says what is wrong with that.
        return ModuleInputSize(size=returned[-1], channels=looks.channels)
    failure = looks.at((CUSTOMARY_SIDE, CUSTOMARY_SIDE)).failure
    if dimensional := re.search(r"\bconv[13]d\b", failure):
        raise ArchitectureError(f"the network of --factory {reference} begins with a {dimensional[0]}. {PICTURES_ONLY}")
    raise InputError(
        f"the network of --factory {reference} takes none of the square images that were tried, of {_SIDES[0]} to "
        f"{_SIDES[-1]} pixels and {looks.channels} channel{'s'[: looks.channels != 1]}: at {CUSTOMARY_SIDE} x "
        f"{CUSTOMARY_SIDE} {failure}. It must take normalised float32 images (rows, channels, height, width); name the "
        "size of its training: --input-size HEIGHTxWIDTH"
    )


def _stem_stride(look: Look) -> int:
    """By how much the picture has shrunk where the blocks begin: at the first join, or after four convolutions."""
    convolutions, stride = 0, 1
    for step in look.steps:
        convolutions += step.kind == "convolution"
        if convolutions > _STEM_CONVOLUTIONS or (step.kind == "join" and convolutions):
            break
        if step.out_height > 1:
            stride = max(stride, round(CUSTOMARY_SIDE / step.out_height))
    return stride


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


def _by(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel))


def _stride(stride: tuple[int, ...]) -> str:
    return str(stride[0]) if len(set(stride)) == 1 else _by(stride)
