"""Quantisation of an FP32 graph to an INT8 graph that agrees with PyTorch, or an error that says how far it came."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.graph.graph_input import pixel_shape
from fuseline.export.graph.precision_share import PrecisionShare
from fuseline.export.graph.runtimes import int8_logits_by_runtime, onnxruntime_logits
from fuseline.export.int8.calibration_images import CalibrationImages, split_images
from fuseline.export.int8.calibrators import CALIBRATORS, Range
from fuseline.export.int8.closeness import ANSWERS, agreement, logit_error
from fuseline.export.int8.histograms import Histogram, activation_histograms
from fuseline.export.int8.int8_share import int8_share, layer_costs
from fuseline.export.int8.mixed_precision_search import KeptInFp32, Runtimes, search_mixed_precision
from fuseline.export.int8.operators import quantised_tensors
from fuseline.export.int8.quantiser import Quantiser, quantised_for_cpus, quantised_for_tensorrt
from fuseline.serve.model_package import Task
from fuseline.serve.precision import PRECISIONS

Form = Literal["cpu", "tensorrt"]
"""The runtimes that a graph is for, which read different QDQ graphs; see `fuseline.export.int8.quantiser`."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An FP32 graph and its calibration, from which INT8 graphs of either form are made."""

    model: onnx.ModelProto
    """The FP32 graph."""
    histograms: Mapping[str, Histogram]
    """Activation that may be quantised, to its histogram."""
    images: CalibrationImages
    task: Task = "single-label"
    """The task, which decides what an answer is; see `fuseline.export.int8.closeness.same_answers`."""


@dataclass(frozen=True, slots=True)
class CalibratorTrial:
    """How well the network with all layers in INT8 agrees with FP32, on calibration images that set no range."""

    calibrator: str
    agreement: float
    """Share of images with the same top-1 class, or set of labels."""
    logit_error: float
    """Root mean square of the logits' differences, as a share of their standard deviation."""


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """A graph with QDQ pairs that keeps the bar, and what that took. Layers have the checkpoint's names."""

    model: onnx.ModelProto
    calibrator: str
    trials: tuple[CalibratorTrial, ...]
    """The trial of every calibrator, the best first, which is that of `calibrator`."""
    trade: tuple[KeptInFp32, ...]
    """The layers in FP32, in the order in which the search chose them; empty where every layer is INT8."""
    share: PrecisionShare
    """The share of INT8, read back from `model`."""
    fp32_nodes: frozenset[str]
    """The graph's names of the layers in FP32."""
    bar: float
    """Smallest agreement that was required."""
    agreement_by_runtime: dict[str, float]
    """Runtime to the share of held-out images on which `model` has eager PyTorch's answer."""
    calibration_images: int
    held_out_images: int
    warnings: tuple[str, ...]
    task: Task = "single-label"

    @property
    def findings(self) -> dict[str, Any]:
        """All but the graph itself, as plain values for the report."""
        return {
            "calibrator": self.calibrator,
            "trials": [asdict(trial) for trial in self.trials],
            "trade": [asdict(step) for step in self.trade],
            "share": self.share.as_json,
            "bar": self.bar,
            "agreement_by_runtime": self.agreement_by_runtime,
            "calibration_images": self.calibration_images,
            "held_out_images": self.held_out_images,
        }

    @property
    def described(self) -> str:
        """The result for people, on one line."""
        share = self.share
        agreed = ", ".join(f"{value:.2%} on {name}" for name, value in self.agreement_by_runtime.items())
        return (
            f"{self.calibrator} ranges, {share.own_layers} of {share.layers} layers and {share.of_multiply_adds:.1%} "
            f"of the multiply-adds in INT8; PyTorch's {ANSWERS[self.task]} on {agreed} of {self.held_out_images} "
            "held-out images"
        )


def calibrate(
    model: onnx.ModelProto,
    calibration: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    eager_held_out: NDArray[np.float32],
    *,
    task: Task = "single-label",
    on_progress: Callable[[float], None] = lambda _: None,
) -> Calibrated:
    """Run `model` on the calibration images and collect histograms of its activations.

    Args:
        model: FP32 graph, as `onnx_from_network` makes it.
        calibration: images (n, h, w, c) to find ranges on.
        held_out: other images, to judge by.
        eager_held_out: eager PyTorch's FP32 logits (n, classes) of `held_out`.
        task: the task, which decides what an answer is.
        on_progress: called with the share of the work that is done, 0 to 1, never falling.

    Raises:
        InputError: images have another size, or are too few.
        VerificationError: an activation is NaN or infinite.
        BackendUnavailableError: ONNX Runtime, whose quantiser this is, is not installed.
    """
    images = split_images(calibration, held_out, eager_held_out, pixel_shape(model), partial(onnxruntime_logits, model))
    histograms = activation_histograms(model, quantised_tensors(model), images.fitting, on_progress)
    return Calibrated(model, histograms, images, task)


def int8_from_fp32(
    calibrated: Calibrated,
    *,
    layer_names: Mapping[str, str],
    bar: float = PRECISIONS["int8"].min_agreement,
    form: Form = "cpu",
    on_progress: Callable[[float], None] = lambda _: None,
) -> Int8Graph:
    """Quantise with the calibrator that suits the network best, and leave in FP32 the layers that the bar requires.

    On one machine the same input gives the same graph. `calibrated` isn't changed.

    Args:
        layer_names: the graph's names of layers to the checkpoint's, where they differ.
        bar: smallest share of held-out images that must have eager PyTorch's answer, on every CPU runtime that is
            installed; for TensorRT's form on ONNX Runtime, which rounds wherever the graph says so.
        form: the runtimes that the graph is for.
        on_progress: called with the share of the work that is done, 0 to 1, never falling.

    Raises:
        VerificationError: the bar isn't kept with half of the multiply-adds in INT8.
    """
    model, images = calibrated.model, calibrated.images
    quantiser, runtimes = _FORMS[form]
    trials, ranges = _try_calibrators(calibrated, quantiser, lambda done: on_progress(0.5 * done))
    costs = layer_costs(model)
    agreed = search_mixed_precision(
        model,
        lambda keep_fp32: quantiser(model, ranges, keep_fp32),
        runtimes,
        images,
        bar=bar,
        costs=costs,
        layer_names=layer_names,
        task=calibrated.task,
    )
    on_progress(1.0)
    share = int8_share(agreed.model, costs)
    return Int8Graph(
        model=agreed.model,
        calibrator=trials[0].calibrator,
        trials=trials,
        trade=agreed.trade,
        share=replace(share, fp32_layer_names=tuple(layer_names.get(name, name) for name in share.fp32_layer_names)),
        fp32_nodes=frozenset(share.fp32_layer_names),
        bar=bar,
        agreement_by_runtime=agreed.agreement_by_runtime,
        calibration_images=len(images.fitting) + len(images.judging),
        held_out_images=len(images.held_out),
        warnings=images.warnings,
        task=calibrated.task,
    )


def _by_onnxruntime(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    return {"onnxruntime": onnxruntime_logits(model, pixels)}


_FORMS: Mapping[Form, tuple[Quantiser, Runtimes]] = {
    "cpu": (quantised_for_cpus, int8_logits_by_runtime),
    "tensorrt": (quantised_for_tensorrt, _by_onnxruntime),
}


def _try_calibrators(
    calibrated: Calibrated, quantiser: Quantiser, on_progress: Callable[[float], None]
) -> tuple[tuple[CalibratorTrial, ...], dict[str, Range]]:
    """Return the trial of every calibrator, that with the smallest error first, and the ranges of that one."""
    expected = calibrated.images.judging_logits
    found = []
    for number, (name, calibrator) in enumerate(CALIBRATORS.items()):
        ranges = {tensor: calibrator(seen) for tensor, seen in calibrated.histograms.items()}
        logits = onnxruntime_logits(quantiser(calibrated.model, ranges, ()), calibrated.images.judging)
        agreed = agreement(logits, expected, calibrated.task)
        found.append((CalibratorTrial(name, agreed, logit_error(logits, expected)), ranges))
        on_progress((number + 1) / len(CALIBRATORS))
    found.sort(key=lambda trial: trial[0].logit_error)
    return tuple(trial for trial, _ in found), found[0][1]
