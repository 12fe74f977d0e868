"""Theoretical receptive fields: the part of the picture that one position of each operation's output can depend on.

Through a window of k positions with dilation d, r = r_before + (k - 1) * d * (product of the strides before), for each
axis (Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks"); where branches join,
the largest field counts. Padding moves a field and doesn't change its size.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from fuseline.export.graph.operations import Operation, OperationGraph, Pair, Permuted, Stepped, Window


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """The receptive field of one position of a map."""

    pixels: Pair | None
    """(height, width) in pixels through windows alone; None where all paths lead through the whole map."""
    whole_input: bool
    """Whether a path leads through the whole map: a global pool, a squeeze-and-excitation gate before it, a flatten, or
    a normalisation by the map's statistics."""

    def covers(self, height: int, width: int) -> bool:
        """Return whether the field is as large as a picture of `height` x `width`."""
        return self.whole_input or (self.pixels is not None and self.pixels[0] >= height and self.pixels[1] >= width)


def receptive_fields(graph: OperationGraph) -> dict[str, ReceptiveField]:
    """Return the receptive field of every value that depends on the picture, by its name."""
    unit = Fraction(1)
    reached = {graph.input_value: _Reached((unit, unit), (unit, unit), False, graph.spatial_axes)}
    shapes = {graph.input_value: graph.input_shape}
    for operation in graph.operations:
        paths = [_through(operation, reached[name], shapes[name]) for name in operation.inputs if name in reached]
        if paths:
            reached[operation.output] = _joined(paths)
            shapes[operation.output] = operation.output_shape
    return {name: state.field for name, state in reached.items()}


@dataclass(frozen=True, slots=True)
class _Reached:
    pixels: tuple[Fraction, Fraction] | None
    step: tuple[Fraction, Fraction]
    """Number of pixels from one position to the next: the product of the strides so far."""
    whole_input: bool
    axes: Pair | None
    """Axes of height and width, counted from the last; None once there is only one position."""

    @property
    def field(self) -> ReceptiveField:
        pixels = None if self.pixels is None else (math.ceil(self.pixels[0]), math.ceil(self.pixels[1]))
        return ReceptiveField(pixels, self.whole_input)


_EVERYTHING = _Reached(None, (Fraction(1), Fraction(1)), whole_input=True, axes=None)


def _through(operation: Operation, before: _Reached, shape: tuple[int, ...]) -> _Reached:
    """Return what `operation` reaches by the path through an input of `shape` that reaches `before`."""
    axes, reach = before.axes, operation.reach
    if reach == "everything":
        return _EVERYTHING
    if axes is None:
        return before
    match reach:
        case Window():
            return _through_window(reach, before) if axes == (-2, -1) else _EVERYTHING
        case Stepped(axis=axis, step=step):
            height, width = ((step if axis == own else 1) * at for own, at in zip(axes, before.step, strict=True))
            return _Reached(before.pixels, (height, width), before.whole_input, axes)
        case Permuted(axes=order):
            at = {taken % len(order): index - len(order) for index, taken in enumerate(order)}
            moved = (at[axes[0] % len(order)], at[axes[1] % len(order)])
            return _Reached(before.pixels, before.step, before.whole_input, moved)
    sizes, sizes_after = _sizes(shape, axes), _sizes(operation.output_shape, axes)
    if sizes is not None and sizes == sizes_after:
        whole = before.whole_input or reach == "statistics"
        return _Reached(before.pixels, before.step, whole, axes)
    if sizes == (1, 1) and math.prod(shape) == math.prod(operation.output_shape):
        # A map of one position loses its axes, as where a flatten follows a pool.
        return _Reached(before.pixels, before.step, before.whole_input, None)
    return _EVERYTHING


def _through_window(window: Window, before: _Reached) -> _Reached:
    pixels = before.pixels
    if pixels is not None:
        height, width = (
            reached + (kernel - 1) * dilation * step
            for reached, kernel, dilation, step in zip(pixels, window.kernel, window.dilation, before.step, strict=True)
        )
        pixels = height, width
    step = before.step[0] * window.stride[0], before.step[1] * window.stride[1]
    return _Reached(pixels, step, before.whole_input, before.axes)


def _joined(paths: list[_Reached]) -> _Reached:
    through_windows = [path.pixels for path in paths if path.pixels is not None]
    pixels = None
    if through_windows:
        pixels = max(height for height, _ in through_windows), max(width for _, width in through_windows)
    step = max(path.step[0] for path in paths), max(path.step[1] for path in paths)
    axes = next((path.axes for path in paths if path.axes is not None), None)
    return _Reached(pixels, step, any(path.whole_input for path in paths), axes)


def _sizes(shape: tuple[int, ...], axes: Pair) -> Pair | None:
    if len(shape) < -min(axes):
        return None
    return shape[axes[0]], shape[axes[1]]
