"""The precision that an engine computes in, read from the layers of the network that it is built from."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import PRECISIONS, PrecisionName, precision_of_type

KEPT_FP32 = "kept_fp32"
"""Key in the details of an ONNX artifact for the names of the nodes that its export left in FP32."""
WEIGHTED_LAYERS = ("CONVOLUTION", "MATRIX_MULTIPLY")


@dataclass(frozen=True, slots=True)
class AchievedPrecision:
    """Counts by precision (`fp16`) over the layers that carry weights."""

    layers: dict[str, int]
    """Number of layers in each precision."""
    weights: dict[str, int]
    """Number of weights in each precision."""
    multiply_adds: dict[str, int]
    """Number of multiply-adds for one image in each precision."""

    def share(self, precision: str) -> float:
        """Return the share of the multiply-adds that are done in `precision`, 0 to 1."""
        return self.multiply_adds.get(precision, 0) / sum(self.multiply_adds.values())

    @property
    def as_json(self) -> dict[str, dict[str, int]]:
        """Counts for the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        parts = (f"{count} {name}" for name, count in sorted(self.layers.items()))
        shares = (f"{self.share(name):.1%} {name}" for name in sorted(self.multiply_adds))
        return f"layers: {', '.join(parts)}; multiply-adds: {', '.join(shares)}"


def achieved_precision(network: Any, trt: Any) -> AchievedPrecision:
    """Return the precision in which the convolutions and matrix multiplications of the parsed `network` compute.

    In a strongly typed network that is the type of a layer's output. A layer whose image and weights both come out of a
    dequantisation is the pattern that TensorRT computes in INT8 (its documentation, "Explicit Quantization").
    """
    layers: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    multiply_adds: Counter[str] = Counter()
    for layer in _weighted(network):
        name = precision_of_type(layer.type)
        layers[name] += 1
        size = _weights_of(layer.layer, trt)
        weights[name] += size
        # Each position of the output takes every weight once.
        multiply_adds[name] += size * math.prod(tuple(layer.layer.get_output(0).shape)[2:])
    return AchievedPrecision(dict(layers), dict(weights), dict(multiply_adds))


def check_precision(
    network: Any,
    precision: PrecisionName,
    *,
    allowed_fp32: Collection[str] | None = (),
    layer_names: Mapping[str, str] | None = None,
) -> None:
    """Check that the layers that carry weights compute in `precision`, except those that may stay floats.

    Args:
        allowed_fp32: the ONNX nodes that may stay FP32, or FP16 beside INT8; None: any, as for a graph that was proven
            before. At least one layer must be in `precision`.
        layer_names: see `described_node`.

    Raises:
        VerificationError: other layers are not; the message names them.
    """
    row = PRECISIONS[precision]
    wanted, may_remain = row.tensorrt_type, {PRECISIONS[name].tensorrt_type for name in row.may_remain}
    layers = _weighted(network)
    others = [layer for layer in layers if layer.type != wanted]
    wrong = [
        layer
        for layer in others
        if layer.type not in may_remain or (allowed_fp32 is not None and layer.node not in allowed_fp32)
    ]
    if len(others) == len(layers):
        wrong = others
    if wrong:
        found = ", ".join(f"{described_node(layer.node, layer_names)} ({layer.type})" for layer in wrong)
        raise VerificationError(
            f"an {precision} engine was asked for, but {len(wrong)} of {len(layers)} convolutions and matrix "
            f"multiplications are not {wanted} in the graph: {found}"
        )


def precision_counts(network: Any) -> dict[str, dict[str, int]]:
    """Return the number of layers by kind and by type of the output."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for layer in layers_of(network):
        counts[layer.type.name][_type(layer)] += 1
    return {kind: dict(of_type) for kind, of_type in sorted(counts.items())}


def described_node(node: str, layer_names: Mapping[str, str] | None = None) -> str:
    """Return the ONNX node's name and, where `layer_names` has it, the checkpoint's layer.

    Args:
        layer_names: names of the graph's layers -> names in the checkpoint. A node that carries no weights is named
            after its layer and its operator, `layer1.0/Relu`.
    """
    names = layer_names or {}
    layer = names.get(node, names.get(node.rpartition("/")[0]))
    return node if layer is None or layer == node else f"{node} (layer {layer} of the checkpoint)"


@dataclass(frozen=True, slots=True)
class _Weighted:
    layer: Any
    node: str
    type: str


def _weighted(network: Any) -> list[_Weighted]:
    layers = layers_of(network)
    dequantised = {layer.get_output(0).name for layer in layers if layer.type.name == "DEQUANTIZE"}
    found = []
    for layer in layers:
        if layer.type.name in WEIGHTED_LAYERS:
            inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
            quantised = len(inputs) == 2 and all(tensor.name in dequantised for tensor in inputs)
            found.append(_Weighted(layer, node_name(layer), "INT8" if quantised else _type(layer)))
    return found


def _weights_of(layer: Any, trt: Any) -> int:
    if layer.type.name == "MATRIX_MULTIPLY":
        return math.prod(tuple(layer.get_input(1).shape)[-2:])
    channels = layer.get_input(0).shape[1]
    # TensorRT returns layers as their base class; this is how its own samples get to the derived class.
    layer.__class__ = trt.IConvolutionLayer
    kernel = math.prod(tuple(layer.kernel_size_nd))
    return int(layer.num_output_maps * channels // layer.num_groups * kernel)


def layers_of(network: Any) -> list[Any]:
    """Return the layers of a parsed network, in its order."""
    return [network.get_layer(index) for index in range(network.num_layers)]


def _type(layer: Any) -> str:
    return str(layer.get_output(0).dtype.name)


def node_name(layer: Any) -> str:
    """Return the ONNX node that `layer` came from: one node may become several layers with names of their own."""
    match = re.search(r"\[ONNX Layer: ([^\]]*)\]", layer.metadata)
    return match[1] if match else str(layer.name)
