"""The range of each layer's numbers on calibration images, and what FP16 does to each layer by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.fp16.float_nodes import MOVERS, FloatNode, FloatNodes, float_nodes
from fuseline.export.fp16.fp16_graph import PIXEL_SCALE_LOG2, rounded_to_fp16, scaled_first_layer
from fuseline.export.fp16.graph_probes import GraphProbes
from fuseline.export.graph.onnx_graph import pixel_nodes
from fuseline.serve.precision import FP16_LARGEST, FP16_SMALLEST_NORMAL, FP16_ZERO_BELOW

DEVIATION_IMAGES = 16
"""Number of images that a root mean square is taken over; it hardly changes with more. A maximum does, and is taken
over all."""
_DEVIATION_COST = 4
_Measured = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """One layer of the FP32 network: a convolution or matrix product, or another operator on floats."""

    layer: str
    operator: str
    weighted: bool
    """Whether the layer is a convolution or a matrix product."""
    largest_input: float
    """Largest magnitude of the input on the calibration images."""
    largest_output: float
    """Largest magnitude of the output, before or after the bias is added; infinite where the output isn't finite."""
    typical_output: float
    """Root mean square of the output."""
    largest_weight: float | None
    """Largest magnitude of the folded weights as FP16 would hold them; None where the layer has none."""
    largest_bias: float | None
    """Largest magnitude of the bias; None where the layer has none."""
    subnormal_share: float | None
    """Share of weights that FP16 holds with fewer than its 11 bits: those below 2**-14."""
    lost_share: float | None
    """Share of weights that are not zero and become zero."""
    deviation: float
    """Root mean square of the change that FP16 makes to the output for FP32's input, as a share of
    `typical_output`."""

    @property
    def overflow_margin(self) -> float:
        """65504 divided by the largest magnitude of input and output; below 1 FP16 overflows."""
        return _margin(max(self.largest_input, self.largest_output))

    @property
    def weight_margin(self) -> float | None:
        """65504 divided by the largest magnitude of weights and bias; None where there are none."""
        held = [largest for largest in (self.largest_weight, self.largest_bias) if largest is not None]
        return _margin(max(held)) if held else None

    @property
    def normal_margin(self) -> float:
        """`typical_output` divided by 2**-14; near 1 and below, FP16 loses bits of the output."""
        return self.typical_output / FP16_SMALLEST_NORMAL


@dataclass(frozen=True, slots=True)
class Calibration:
    """Results of a run of the FP32 graph on calibration images."""

    ranges: tuple[LayerRange, ...]
    """The range of each layer, in running order."""
    logits: NDArray[np.float32]
    """(n, classes)."""


def calibrate(
    model: onnx.ModelProto, pixels: NDArray[np.uint8], on_progress: Callable[[float], None] = lambda _: None
) -> Calibration:
    """Run `model` (as `onnx_from_network` makes it) on `pixels` (n, h, w, c) and record each layer's range.

    On up to `DEVIATION_IMAGES` of the images each layer is computed twice, the second time in FP16 from its FP32 input,
    so that an error is found in the layer that makes it, and in none behind. Memory doesn't grow with the number of
    images.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        BackendError: ONNX Runtime fails.
    """
    nodes = float_nodes(model, {node.name for node in pixel_nodes(model)})
    some = pixels[spread(len(pixels), DEVIATION_IMAGES)]
    share = len(pixels) / (len(pixels) + _DEVIATION_COST * len(some))
    logits, extremes = _extremes(model, nodes).run(pixels, lambda done: on_progress(share * done))
    scales = {scaled_first_layer(model): float(2**PIXEL_SCALE_LOG2)}
    _, deviations = _deviations(model, nodes, scales).run(some, lambda done: on_progress(share + (1 - share) * done))
    measured = extremes | deviations
    ranges = tuple(_range(node, nodes, measured, scales.get(node.name, 1.0)) for node in nodes.nodes)
    return Calibration(ranges, logits)


def spread(images: int, count: int) -> NDArray[np.int64]:
    """Return the indices of at most `count` of `images`, from all over them, as neighbours are often of one class."""
    return np.linspace(0, images - 1, min(count, images)).astype(np.int64)


def _extremes(model: onnx.ModelProto, nodes: FloatNodes) -> GraphProbes:
    probes = GraphProbes(model)
    axes_of = {node.outputs[0]: _axes_but_channels(node, nodes) for node in nodes.nodes}
    for value in dict.fromkeys(name for node in nodes.nodes for name in (*node.activations, node.outputs[0])):
        # A sum before the bias is measured for each channel, as each has its own bias.
        axes = axes_of.get(value, ())
        probes.reduce("ReduceMax", value, f"largest:{value}", np.maximum, axes)
        probes.reduce("ReduceMin", value, f"smallest:{value}", np.minimum, axes)
    return probes


def _deviations(model: onnx.ModelProto, nodes: FloatNodes, scales: dict[str | None, float]) -> GraphProbes:
    """Return probes that compute each node once more, as FP16 would from FP32's values."""
    probes = GraphProbes(model)
    for node in nodes.nodes:
        output = node.outputs[0]
        probes.reduce("ReduceSumSquare", output, f"squares:{output}", np.add)
        probes.count(output, f"size:{output}")
        if node.proto.op_type in MOVERS:
            continue
        shadow = onnx.NodeProto.FromString(node.proto.SerializeToString())
        for index, name in enumerate(shadow.input):
            if name in nodes.floats and node.takes_fp16(index):
                scale = scales.get(node.name, 1.0) if index == 1 else 1.0
                shadow.input[index] = _rounded(probes, nodes, name, scale)
        shadow.name = f"shadow:{node.name}"
        shadow.output[:] = [f"shadow:{name}" for name in shadow.output]
        probes.add(shadow, behind=node.name)
        error = probes.apply("Sub", [probes.rounded(shadow.output[0]), output], f"difference:{output}")
        probes.reduce("ReduceSumSquare", error, f"error:{output}", np.add)
    return probes


def _rounded(probes: GraphProbes, nodes: FloatNodes, name: str, scale: float) -> str:
    if name not in nodes.initialisers:
        return probes.rounded(name)
    rounded = rounded_to_fp16(nodes.array(name) * np.float32(scale)).astype(np.float32) / np.float32(scale)
    return probes.constant(f"rounded:{name}:{scale}", rounded)


def _axes_but_channels(node: FloatNode, nodes: FloatNodes) -> tuple[int, ...]:
    """Return all axes of the output but the channels', for a layer with a bias; else ()."""
    if node.bias is None:
        return ()
    return tuple(axis for axis in range(len(nodes.initialisers[node.constants[0]].dims)) if axis != 1)


def _range(node: FloatNode, nodes: FloatNodes, measured: _Measured, scale: float) -> LayerRange:
    output = node.outputs[0]
    squares, error = float(measured[f"squares:{output}"]), float(measured.get(f"error:{output}", np.zeros(())))
    largest_output = _largest(measured, output)
    if node.bias is not None:
        bias = nodes.array(node.bias)
        sums = (measured[f"{which}:{output}"] - bias for which in ("largest", "smallest"))
        largest_output = max(largest_output, *(float(np.abs(values).max()) for values in sums))
    if not math.isfinite(squares + largest_output):
        largest_output = math.inf
    weights = [
        nodes.array(name) * np.float32(scale if number == 0 else 1) for number, name in enumerate(node.constants)
    ]
    magnitude = np.abs(np.concatenate([values.ravel() for values in weights])) if weights else np.zeros(0)
    held = magnitude.size > 0
    lost = (magnitude > 0) & (magnitude <= FP16_ZERO_BELOW)
    small = (magnitude > FP16_ZERO_BELOW) & (magnitude < FP16_SMALLEST_NORMAL)
    return LayerRange(
        layer=node.name,
        operator=str(node.proto.op_type),
        weighted=node.weighted,
        largest_input=max(_largest(measured, name) for name in node.activations),
        largest_output=largest_output,
        typical_output=math.sqrt(squares / float(measured[f"size:{output}"])),
        largest_weight=float(magnitude.max()) if held else None,
        largest_bias=None if node.bias is None else float(np.abs(nodes.array(node.bias)).max(initial=0.0)),
        subnormal_share=float(small.mean()) if held else None,
        lost_share=float(lost.mean()) if held else None,
        deviation=_deviation(squares, error, largest_output),
    )


def _largest(measured: _Measured, value: str) -> float:
    largest = max(float(np.abs(measured[f"{which}:{value}"]).max()) for which in ("largest", "smallest"))
    return math.inf if math.isnan(largest) else largest


def _deviation(squares: float, error: float, largest: float) -> float:
    if 0 < largest <= FP16_ZERO_BELOW:
        # The squares of such numbers may be lost in FP32 too.
        return 1.0
    if error == 0:
        return 0.0
    ratio = error / squares if squares else math.inf
    return math.sqrt(ratio) if math.isfinite(ratio) else math.inf


def _margin(largest: float) -> float:
    return FP16_LARGEST / largest if largest else math.inf
