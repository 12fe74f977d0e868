"""A module run on pictures of many sizes, which shows the sizes that it takes and how its first layers shrink them."""

from collections.abc import Iterable

from torch import nn

from fuseline.export.recognition.modules.module_run import ModuleRun, Step, run_module

CUSTOMARY_SIDE = 224
"""Side in pixels of the pictures that networks for ImageNet take."""
CUSTOMARY_SIDES = (28, 32, 64, 96, 128, 160, 192, CUSTOMARY_SIDE, 256, 288, 299, 320, 384, 448, 512)
_OTHER_SIDES = (8, 16, 24, 40, 48, 56, 80, 84, 100, 112, 144, 150, 176, 200, 227, 240, 300, 331)
SIDES = tuple(sorted((*CUSTOMARY_SIDES, *_OTHER_SIDES)))
"""All sides in pixels that are tried."""
# A module that takes all of these and cuts none of its maps takes any size.
_FIRST_SIDES = (64, 96, 160)
_STEM_CONVOLUTIONS = 4
_STEM_STRIDE = 4
_TOTAL_STRIDE = 32


class SizeTrials:
    """A module run on pictures of many sizes, on each size once.

    Args:
        module: eval mode.
        size: (height, width) that the module must take; None: any that is tried.
    """

    def __init__(self, module: nn.Module, size: tuple[int, int] | None) -> None:
        self._module = module
        self._runs: dict[tuple[int, int], ModuleRun] = {}
        self.channels = 3
        self._find_channels(size or (_FIRST_SIDES[0], _FIRST_SIDES[0]), size)

    def at(self, size: tuple[int, int]) -> ModuleRun:
        """Return the run on pictures of `size` (height, width)."""
        if size not in self._runs:
            self._runs[size] = run_module(self._module, self.channels, size)
        return self._runs[size]

    def fitting_sides(self) -> tuple[int, ...]:
        """Return the sides in pixels, ascending, of the squares that the module takes and uses all of."""
        first = [self.at((side, side)) for side in _FIRST_SIDES]
        if all(run.classes and _is_whole(run) for run in first) and len({run.classes for run in first}) == 1:
            return SIDES
        return self._whole(side for side in SIDES if self.at((side, side)).classes)

    def fits(self, size: tuple[int, int], sides: tuple[int, ...]) -> bool:
        """Return whether the module takes `size` as well as the squares of `sides`, the only ones that it takes whole.

        With () as `sides`, it is enough that the module takes `size`.
        """
        run = self.at(size)
        if not run.classes:
            return False
        others = [self.at((side, side)) for side in sides]
        return not sides or (_is_whole(run) and run.classes == others[0].classes)

    def _whole(self, sides: Iterable[int]) -> tuple[int, ...]:
        """Return those of `sides` for which no row or column of the last map is left out; all of them if none is so."""
        runs = {side: self.at((side, side)) for side in sides}
        if not runs:
            return ()
        # A classifier that is a convolution gives more logits the larger the picture is.
        fewest = min(run.classes or 0 for run in runs.values())
        runs = {side: run for side, run in runs.items() if run.classes == fewest}
        whole = tuple(side for side, run in runs.items() if _is_whole(run))
        return whole or tuple(runs)

    @property
    def is_as_for_imagenet(self) -> bool:
        """Whether the first convolution strides and the picture shrinks by 4 before the blocks or by 32 in all."""
        run = self.at((CUSTOMARY_SIDE, CUSTOMARY_SIDE))
        convolutions = run.convolutions
        if not convolutions or max(convolutions[0].stride) < 2:
            return False
        # Gates and classifiers that are convolutions run on maps of 1 x 1, to which an adaptive pool reduces any map.
        last = min((step.out_height for step in convolutions if step.in_height > 1), default=CUSTOMARY_SIDE)
        return _stem_stride(run) >= _STEM_STRIDE or round(CUSTOMARY_SIDE / last) >= _TOTAL_STRIDE

    @property
    def first_convolution(self) -> str:
        """The first convolution, for people."""
        if (first := self._first) is None:
            return "it has no convolution"
        return f"its first convolution is {_by(first.kernel)} with stride {_stride(first.stride)}"

    @property
    def description(self) -> str:
        """What keeps 224 from being assumed, for people."""
        if self.is_as_for_imagenet:
            return f"{self.first_convolution}, but its images have {self.channels} channel{'s'[: self.channels != 1]}"
        small = self._first is not None and max(self._first.stride) == 1
        return f"{self.first_convolution}{', as networks for small pictures have' if small else ''}"

    @property
    def _first(self) -> Step | None:
        return next((run.convolutions[0] for run in self._runs.values() if run.convolutions), None)

    def _find_channels(self, size: tuple[int, int], required: tuple[int, int] | None) -> None:
        """Set `channels` to the number that the convolution takes which runs first; it need not be listed first."""
        listed = [child.in_channels for child in self._module.modules() if isinstance(child, nn.Conv2d)]
        self.channels = listed[0] if listed else 3
        tried = {self.channels: self.at(size)}
        if not tried[self.channels].steps and tried[self.channels].first_convolution_takes is None and not listed:
            # No convolution at all: a linear layer on the pixels.
            for channels in (3, 1):
                self._start_over(channels)
                sides = [required] if required else [(side, side) for side in SIDES]
                if any(self.at(side).classes for side in sides):
                    return
            self._start_over(3)
            return
        executed = tried[self.channels].first_convolution_takes
        for channels in (self.channels, *((executed,) if executed else ()), 3, 1):
            if channels not in tried:
                self._start_over(channels)
                tried[channels] = self.at(size)
            if tried[channels].convolutions:
                self.channels = channels
                self._runs = {size: tried[channels]}
                return
        self._start_over(listed[0] if listed else 3)

    def _start_over(self, channels: int) -> None:
        self.channels = channels
        self._runs = {}


def _is_whole(run: ModuleRun) -> bool:
    """Return whether the last pool takes all of its map."""
    return run.last_pool is None or not run.last_pool.cuts


def _stem_stride(run: ModuleRun) -> int:
    """Return the factor by which the picture has shrunk before the blocks: at the first join, or four convolutions."""
    convolutions, stride = 0, 1
    for step in run.steps:
        convolutions += step.kind == "convolution"
        if convolutions > _STEM_CONVOLUTIONS or (step.kind == "join" and convolutions):
            break
        if step.out_height > 1:
            stride = max(stride, round(CUSTOMARY_SIDE / step.out_height))
    return stride


def _by(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel))


def _stride(stride: tuple[int, ...]) -> str:
    return str(stride[0]) if len(set(stride)) == 1 else _by(stride)
