"""The effect of FP16 on a network's weights and activations, as far as an inspection tells; an export measures more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.precision import FP16_LARGEST, FP16_SMALLEST_NORMAL, FP16_ZERO_BELOW

MIN_ACTIVATION_MARGIN = 16.0
"""Smallest margin of activations below 65504. A layer with less is at risk, as pictures unlike the generated ones may
well give several times larger activations."""
MAX_SUBNORMAL_SHARE = 0.5
"""Largest share of weights that may lose bits or become zero before a layer is at risk. A few small weights beside
larger ones don't show in a sum; a majority does."""


@dataclass(frozen=True, slots=True)
class Fp16Facts:
    """The effect of FP16 on one convolution or linear layer, with its BatchNorm folded in."""

    layer: str
    largest_weight: float | None
    """Largest magnitude of the weights; None where the network computes them."""
    subnormal_share: float | None
    """Share of weights that become subnormal numbers, which have fewer than FP16's 11 bits."""
    zero_share: float | None
    """Share of weights that are not zero and become zero."""
    largest_activation: float | None
    """Largest magnitude of the layer's output (behind its BatchNorm) on generated images; None if none was run."""
    activation_margin: float | None
    """65504 / `largest_activation`."""
    risks: tuple[str, ...]
    """Sentences: why the layer is at risk; empty if it isn't."""


def fp16_facts(layer: str, weight: NDArray[np.float32] | None, largest_activation: float | None) -> Fp16Facts:
    """Return the effect of FP16 on a layer whose folded weights are `weight`, of any shape."""
    largest = subnormal = zero = None
    if weight is not None and weight.size:
        magnitude = np.abs(weight)
        largest = float(magnitude.max())
        lost = (magnitude > 0) & (magnitude <= FP16_ZERO_BELOW)
        zero = float(lost.mean())
        subnormal = float(((magnitude > FP16_ZERO_BELOW) & (magnitude < FP16_SMALLEST_NORMAL)).mean())
    margin = None
    if largest_activation is not None and largest_activation > 0:
        margin = FP16_LARGEST / largest_activation
    risks = tuple(_risks(largest, (subnormal or 0.0) + (zero or 0.0), largest_activation))
    return Fp16Facts(layer, largest, subnormal, zero, largest_activation, margin, risks)


def scaled_rows(weight: NDArray[np.float32], gain: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Return `weight` (out, ...) with each output's row times its gain (out,), computed in float64."""
    if gain is None:
        return weight
    folded: NDArray[np.float32] = (weight * gain.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    return folded


def _risks(largest: float | None, small: float, activation: float | None) -> list[str]:
    risks = []
    if largest is not None and largest > FP16_LARGEST:
        risks.append(f"a weight of {largest:.3g} is beyond FP16's largest number, {FP16_LARGEST:.0f}")
    if small > MAX_SUBNORMAL_SHARE:
        risks.append(f"{small:.0%} of its weights lie below 2**-14, where FP16 loses bits")
    if activation is not None and not math.isfinite(activation):
        risks.append("its output is not finite on generated images, in FP32 already")
    elif activation is not None and activation > FP16_LARGEST:
        risks.append(f"its output reaches {activation:.3g} on generated images, beyond {FP16_LARGEST:.0f}")
    elif activation is not None and activation > FP16_LARGEST / MIN_ACTIVATION_MARGIN:
        risks.append(
            f"its output reaches {activation:.3g} on generated images, {FP16_LARGEST / activation:.1f} times below "
            f"{FP16_LARGEST:.0f}"
        )
    return risks


def largest_value(activations: Mapping[str, float]) -> tuple[str, float] | None:
    """Return name and magnitude of the largest value, sums of branches too; one that isn't finite is the largest."""
    if not activations:
        return None
    name = max(activations, key=lambda key: math.inf if math.isnan(activations[key]) else activations[key])
    return name, activations[name]
