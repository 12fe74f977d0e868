"""The charts of an inspection's page, in the units of the SVG's viewBox."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.export.inspection.inspected import BatchNormFacts, Layer
from fuseline.export.inspection.inspection_text import figure

WIDTH, HEIGHT = 960.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 8.0, 14.0, 22.0
SMALLEST_GAIN = 1e-6
"""Gain at which smaller ones, 0 too, are drawn, as a logarithmic axis has no zero."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled line across the chart."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one layer."""

    x: float
    width: float
    y: float
    height: float
    mark: float | None
    """The y of a mark across the bar; None: there is none."""
    emphasised: bool
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with a bar for each layer in running order."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    line: Tick | None
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def receptive_field_chart(layers: Sequence[Layer], input_shape: tuple[int, int, int]) -> Chart:
    """Return a chart of the smaller side of each layer's receptive field, with a line at that of the picture.

    Receptive fields are those through windows. Layers that see the whole picture by a statistic have a mark at the
    line.
    """
    side = min(input_shape[1:])
    heights = [min(layer.receptive_field_pixels or (0, 0)) for layer in layers]
    step = _step_of_ticks(max((*heights, side)))
    top = step * math.ceil(max((*heights, side)) * 1.02 / step)

    def y(pixels: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - pixels / top)

    bars = [
        Bar(
            x=x,
            width=width,
            y=y(pixels),
            height=y(0) - y(pixels),
            mark=y(side) if layer.sees_whole_input else None,
            emphasised=layer.covers_input,
            title=_field_title(layer),
        )
        for layer, pixels, (x, width) in zip(layers, heights, _places(len(layers)), strict=True)
    ]
    ticks = tuple(Tick(y(at), str(at)) for at in range(0, top + 1, step))
    return Chart(tuple(bars), ticks, Tick(y(side), f"the picture: {side}"))


def gain_chart(batchnorms: Sequence[BatchNormFacts]) -> Chart:
    """Return a chart, on a logarithmic axis, of each BatchNorm's smallest to largest gain, the median marked."""

    def power(gain: float) -> float:
        return math.log10(max(gain, SMALLEST_GAIN)) if math.isfinite(gain) else math.log10(SMALLEST_GAIN)

    least = math.floor(min(power(norm.gain.smallest) for norm in batchnorms))
    most = max(math.ceil(max(power(norm.gain.largest) for norm in batchnorms)), least + 1)

    def y(at: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (most - at) / (most - least)

    bars = []
    for norm, (x, width) in zip(batchnorms, _places(len(batchnorms)), strict=True):
        low, middle, high = (power(gain) for gain in (norm.gain.smallest, norm.gain.median, norm.gain.largest))
        title = (
            f"{norm.name}: {norm.gain.smallest:.3g} to {norm.gain.largest:.3g}, median {norm.gain.median:.3g}, "
            f"{norm.dead_channels} dead channels"
        )
        bars.append(Bar(x, width, y(high), max(y(low) - y(high), 1.0), y(middle), norm.dead_channels > 0, title))
    ticks = tuple(Tick(y(at), figure(10.0**at)) for at in range(least, most + 1))
    return Chart(tuple(bars), ticks, Tick(y(0), "1") if least < 0 < most else None)


def _places(count: int) -> list[tuple[float, float]]:
    """Return (left, width) of each bar."""
    room = (WIDTH - LEFT - RIGHT) / max(count, 1)
    width = min(room * 0.7, 26.0)
    return [(LEFT + room * (index + 0.5) - width / 2, width) for index in range(count)]


def _step_of_ticks(most: float) -> int:
    """Return the step between ticks, 1, 2 or 5 times a power of ten, of which about five reach `most`."""
    rough = max(most / 5, 1.0)
    power = 10 ** math.floor(math.log10(rough))
    return next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= rough)


def _field_title(layer: Layer) -> str:
    sizes = layer.receptive_field_pixels
    through = "" if sizes is None else f"{sizes[0]} x {sizes[1]} pixels through windows"
    whole = "the whole picture through a statistic of it" if layer.sees_whole_input else ""
    return f"{layer.name}: {' and '.join(part for part in (through, whole) if part)}"
