"""The share of a graph that is in a precision, read back from the graph that was written."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import PRECISIONS

_COMPUTE_OPS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class PrecisionShare:
    """The part of a graph's convolutions and matrix products that is in `precision`; `own_` marks its counts."""

    precision: str
    own_layers: int
    layers: int
    """Number of convolutions and matrix products."""
    own_weights: int
    weights: int
    """Number of elements of the initialisers that the layers multiply with."""
    own_multiply_adds: int
    multiply_adds: int
    """Number of the layers' multiply-adds for one image; biases don't count, as is customary."""
    fp32_layer_names: tuple[str, ...]
    """Layers that are not in `precision`, in running order."""

    @property
    def of_multiply_adds(self) -> float:
        """Share of the multiply-adds in `precision`, 0 to 1."""
        return self.own_multiply_adds / self.multiply_adds if self.multiply_adds else 0.0

    @property
    def as_json(self) -> dict[str, int | list[str]]:
        """Values for the report; the counts in `precision` have its name, such as `fp16_layers` beside `layers`."""
        return {
            f"{self.precision}_layers": self.own_layers,
            "layers": self.layers,
            f"{self.precision}_weights": self.own_weights,
            "weights": self.weights,
            f"{self.precision}_multiply_adds": self.own_multiply_adds,
            "multiply_adds": self.multiply_adds,
            "fp32_layer_names": list(self.fp32_layer_names),
        }


def precision_share(model: onnx.ModelProto, precision: str) -> PrecisionShare:
    """Return the share in `precision`, one of floats, by the types and shapes that ONNX infers.

    Raises:
        VerificationError: types contradict each other, or a layer's shape can't be inferred.
    """
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise VerificationError(f"the precision of the graph's layers can't be read back: {error}") from error
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    stored = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        types[tensor.name], shapes[tensor.name] = tensor.data_type, list(tensor.dims)
    own_type = TensorProto.DataType.Value(PRECISIONS[precision].onnx_type)
    own, every = [0, 0, 0], [0, 0, 0]
    others = []
    for node in model.graph.node:
        if node.op_type not in _COMPUTE_OPS:
            continue
        is_own = {types.get(node.input[0]), types.get(node.output[0])} == {own_type}
        counts = (1, *_weights_and_multiply_adds(node, shapes, node.input[1] in stored))
        for totals in (own, every) if is_own else (every,):
            totals[:] = [total + count for total, count in zip(totals, counts, strict=True)]
        if not is_own:
            others.append(node.name)
    return PrecisionShare(
        precision=precision,
        own_layers=own[0],
        layers=every[0],
        own_weights=own[1],
        weights=every[1],
        own_multiply_adds=own[2],
        multiply_adds=every[2],
        fp32_layer_names=tuple(others),
    )


def check_share(model: onnx.ModelProto, precision: str, allowed_fp32: Collection[str] = ()) -> PrecisionShare:
    """Return the graph's `precision_share` if all layers but the nodes `allowed_fp32` are in `precision`.

    Raises:
        VerificationError: other layers are FP32, which are named, or no layer is in `precision`.
    """
    onnx.checker.check_model(model, full_check=True)
    share, title = precision_share(model, precision), PRECISIONS[precision].title
    unasked = [name for name in share.fp32_layer_names if name not in allowed_fp32]
    if unasked:
        raise VerificationError(f"{title} was asked for, but these layers are FP32: {', '.join(unasked)}")
    if share.layers and not share.own_layers:
        raise VerificationError(
            f"{title} was asked for, but all {share.layers} layers must stay in FP32; export without --{precision}"
        )
    return share


def _weights_and_multiply_adds(node: onnx.NodeProto, shapes: dict[str, list[int]], stored: bool) -> tuple[int, int]:
    """Return the counts of one layer; a matrix that the network computes itself (not `stored`) is no weight."""
    taken, weight, output = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    # Each position of a convolution's output takes every weight once; each number of a matrix product's output, for one
    # image, is a sum over the last dimension of its input.
    factors = (*weight, *output[2:]) if node.op_type == "Conv" else (*taken[-1:], *output[1:])
    if not (taken and weight and output and all(factors)):
        raise VerificationError(f"the shape of layer {node.name} can't be inferred, so its share can't be read back")
    return math.prod(weight) if stored else 0, math.prod(factors)
