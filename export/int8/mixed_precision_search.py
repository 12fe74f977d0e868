"""The mixed-precision search of INT8: layers stay FP32, the most harmful first, until the network agrees with PyTorch.

Harm is judged on calibration images; the held-out images only tell when enough layers stay FP32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.graph.runtimes import onnxruntime_logits
from fuseline.export.int8.calibration_images import CalibrationImages
from fuseline.export.int8.closeness import ANSWERS, agreement, logit_error
from fuseline.export.int8.int8_share import LayerCost, int8_share
from fuseline.export.int8.layer_noise import layer_noise
from fuseline.serve.errors import VerificationError
from fuseline.serve.model_package import Task

MIN_SHARE = 0.5
"""Smallest share of the multiply-adds that must be INT8; with less there is little to gain over FP32."""
_MEASURED = 24
"""Number of layers whose effect on the logits is measured, one run each; in deeper networks these are the first, the
last and the noisiest ones."""
_LEAST_GAIN = 0.005
"""Smallest share of the logits' error that a layer must take away to stay FP32."""

Quantise = Callable[[Sequence[str]], onnx.ModelProto]
"""A function from the names of the layers that stay FP32 to the quantised graph."""
Runtimes = Callable[[onnx.ModelProto, NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""A function from a graph and images to each runtime's logits."""


@dataclass(frozen=True, slots=True)
class KeptInFp32:
    """A layer that was left in FP32, and what that gained."""

    layer: str
    multiply_adds: float
    """The layer's share of the network's multiply-adds, 0 to 1."""
    logit_error: float
    """Error that is left in the calibration images' logits; see `fuseline.export.int8.closeness`."""
    agreement_before: float
    """Agreement with eager PyTorch on the held-out images, the lowest of all runtimes, without this layer in FP32."""
    agreement_after: float
    """The same with this layer in FP32."""


@dataclass(frozen=True, slots=True)
class MixedPrecisionGraph:
    """A quantised graph that keeps its bar, some of its layers in FP32."""

    model: onnx.ModelProto
    agreement_by_runtime: dict[str, float]
    trade: tuple[KeptInFp32, ...]


def search_mixed_precision(
    model: onnx.ModelProto,
    quantise: Quantise,
    runtimes: Runtimes,
    images: CalibrationImages,
    *,
    bar: float,
    costs: Mapping[str, LayerCost],
    layer_names: Mapping[str, str],
    task: Task = "single-label",
) -> MixedPrecisionGraph:
    """Quantise `model`, and leave in FP32 as many layers as `bar` requires.

    Args:
        model: FP32 graph.
        quantise: quantises `model` but for some layers.
        runtimes: run a quantised graph on the held-out images.
        images: calibration and held-out images.
        bar: smallest agreement with eager PyTorch that every runtime must have.
        costs: costs of all layers of `model`.
        layer_names: the graph's names of layers to those for the result and errors.
        task: the task, which decides what an answer is; see `fuseline.export.int8.closeness.same_answers`.

    Raises:
        VerificationError: the bar isn't kept with `MIN_SHARE` of the multiply-adds in INT8; the message has the steps.
    """
    quantised = quantise(())
    agreements = _agreements(runtimes(quantised, images.held_out), images, task)
    if min(agreements.values()) >= bar:
        return MixedPrecisionGraph(quantised, agreements, ())
    total = sum(cost.multiply_adds for cost in costs.values())
    error = _error(quantised, images)
    kept: list[str] = []
    trade: list[KeptInFp32] = []
    for layer in _most_harmful_first(model, quantise, images, tuple(costs)):
        attempt = quantise([*kept, layer])
        remaining = _error(attempt, images)
        if int8_share(attempt, costs).of_multiply_adds < MIN_SHARE or remaining > error * (1 - _LEAST_GAIN):
            continue
        before = min(agreements.values())
        kept.append(layer)
        error = remaining
        agreements = _agreements(runtimes(attempt, images.held_out), images, task)
        after = min(agreements.values())
        trade.append(
            KeptInFp32(layer_names.get(layer, layer), costs[layer].multiply_adds / total, error, before, after)
        )
        if after >= bar:
            return MixedPrecisionGraph(attempt, agreements, tuple(trade))
    raise VerificationError(_failure(bar, trade, agreements, task))


def _most_harmful_first(
    model: onnx.ModelProto, quantise: Quantise, images: CalibrationImages, layers: Sequence[str]
) -> list[str]:
    """Return the INT8 layers by the logits' error when that layer alone is FP32; those not measured so by their noise.

    A layer's own noise is not its effect on the logits, but costs one run for all layers of a deep network.
    """
    noise = layer_noise(model, quantise(()), images.judging)
    by_noise = [layer for layer in (layers[0], layers[-1]) if layer in noise]
    by_noise += [layer for layer in noise if layer not in by_noise]
    errors = {layer: _error(quantise([layer]), images) for layer in by_noise[:_MEASURED]}
    return [*sorted(errors, key=lambda layer: errors[layer]), *by_noise[_MEASURED:]]


def _error(model: onnx.ModelProto, images: CalibrationImages) -> float:
    return logit_error(onnxruntime_logits(model, images.judging), images.judging_logits)


def _agreements(
    by_runtime: Mapping[str, NDArray[np.float32]], images: CalibrationImages, task: Task
) -> dict[str, float]:
    return {name: agreement(logits, images.held_out_logits, task) for name, logits in by_runtime.items()}


def _failure(bar: float, trade: Sequence[KeptInFp32], agreements: Mapping[str, float], task: Task) -> str:
    steps = "; ".join(f"{t.layer} in FP32: {t.agreement_before:.2%} to {t.agreement_after:.2%}" for t in trade)
    tried = f"layers were given back to FP32 ({steps})" if trade else "no layer could be given back to FP32"
    runtimes = ", ".join(f"{value:.2%} on {name}" for name, value in agreements.items())
    return (
        f"in INT8 the model has eager PyTorch's {ANSWERS[task]} on {runtimes} of the held-out images, and at least "
        f"{bar:.2%} is asked for, though {tried}. No other helps, or less than {MIN_SHARE:.0%} of the multiply-adds "
        "would be INT8. Calibrate on more images of the network's own kind (--images), or lower --int8-bar"
    )
