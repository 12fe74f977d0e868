"""The figure of `depth_study.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from depth_study import Measurement, Study

_COLOURS = {"ResNet": "#1b6ca8", "plain": "#c8501e"}
_MARKERS = {"ResNet": "o", "plain": "s"}


def draw(measurements: list[Measurement], study: Study, path: Path) -> None:
    """Write a PNG of two panels: gradient norms by layer, and the held-out accuracy after each deletion."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_gradients(left, measurements, study)
    _draw_deletions(right, measurements, study)
    figure.suptitle(
        f"The same {study.layers} layers with shortcuts (ResNet) and without (plain): width {study.width}, digits at "
        f"{study.side} x {study.side} pixels, {study.steps} steps of {study.batch_rows} images, seed {study.seed}",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)


def _draw_gradients(axes: Axes, measurements: list[Measurement], study: Study) -> None:
    for network, colour in _COLOURS.items():
        for steps, style in ((0, "--"), (study.steps, "-")):
            rows = [
                row
                for row in measurements
                if (row.network, row.measure, row.steps) == (network, "gradient_norm", steps)
            ]
            when = "at initialisation" if steps == 0 else f"after {steps} steps"
            axes.plot(
                [row.depth for row in rows],
                [row.value for row in rows],
                style,
                color=colour,
                marker=_MARKERS[network],
                markersize=3.5,
                markerfacecolor="white" if steps == 0 else colour,
                label=f"{network}, {when}",
            )
    _mark_stages(axes, study)
    axes.set_yscale("log")
    axes.set_title("Gradient of the loss by layer: ResNet and plain network, before and after training", fontsize=10)
    axes.set_xlabel("layer, counted from the input")
    axes.set_ylabel("L2 norm of the gradient for the layer's weights (log scale)")
    axes.grid(alpha=0.3, which="major")
    _legend_below(axes)


def _draw_deletions(axes: Axes, measurements: list[Measurement], study: Study) -> None:
    for network, colour in _COLOURS.items():
        own = [row for row in measurements if row.network == network]
        (whole,) = [100 * row.value for row in own if row.measure == "accuracy"]
        rows = [row for row in own if row.measure == "accuracy_lost"]
        piece = "block of 2 layers" if rows[0].layers_deleted == 2 else "layer"
        axes.axhline(whole, color=colour, linestyle="--", linewidth=1, label=f"{network}, nothing deleted")
        axes.plot(
            [row.depth for row in rows],
            [whole - 100 * row.value for row in rows],
            _MARKERS[network],
            color=colour,
            markersize=5,
            label=f"{network}, one {piece} deleted",
        )
    axes.axhline(10, color="black", linestyle=":", linewidth=1, label="guessing one of 10 classes")
    _mark_stages(axes, study)
    axes.set_ylim(0, 102)
    axes.set_title(
        f"Accuracy with one block or layer deleted after {study.steps} steps, not trained since", fontsize=10
    )
    axes.set_xlabel("first deleted layer, counted from the input")
    axes.set_ylabel("held-out accuracy (%)")
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _mark_stages(axes: Axes, study: Study) -> None:
    """Lines at the first layers of stages 2 and 3."""
    for stage in (1, 2):
        label = "width doubles, sides halve" if stage == 1 else None
        axes.axvline(
            2 + 2 * study.blocks_per_stage * stage, color="grey", linewidth=1, alpha=0.4, zorder=0, label=label
        )
    axes.set_xlim(0, study.layers + 1)


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
