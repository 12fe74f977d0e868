"""How much of a graph is FP16: read back from the graph that was written, whatever was meant to be in it."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

from fuseline.serve.errors import VerificationError

_COMPUTE_OPS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class PrecisionShare:
    """How much of a graph is FP16, read back from the graph itself."""

    fp16_layers: int
    layers: int
    """Convolutions and matrix products."""
    fp16_weights: int
    weights: int
    """Elements of the initialisers that those layers multiply with."""
    fp32_layer_names: tuple[str, ...]
    fp16_multiply_adds: int
    multiply_adds: int
    """Of those layers, for one image; biases are not counted, as is customary."""


def precision_share(model: onnx.ModelProto) -> PrecisionShare:
    """Count FP16 layers, weights and multiply-adds by the types and shapes that ONNX infers.

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
    totals = {name: [0, 0, 0] for name in ("fp16", "all")}
    fp32_layers = []
    for node in model.graph.node:
        if node.op_type not in _COMPUTE_OPS:
            continue
        half = {types.get(node.input[0]), types.get(node.output[0])} == {TensorProto.FLOAT16}
        counts = (1, *_weights_and_multiply_adds(node, shapes, node.input[1] in stored))
        for name in ("fp16", "all") if half else ("all",):
            totals[name] = [total + count for total, count in zip(totals[name], counts, strict=True)]
        if not half:
            fp32_layers.append(node.name)
    return PrecisionShare(
        fp16_layers=totals["fp16"][0],
        layers=totals["all"][0],
        fp16_weights=totals["fp16"][1],
        weights=totals["all"][1],
        fp32_layer_names=tuple(fp32_layers),
        fp16_multiply_adds=totals["fp16"][2],
        multiply_adds=totals["all"][2],
    )


def check_fp16(model: onnx.ModelProto, allowed_fp32: Collection[str] = ()) -> PrecisionShare:
    """The graph's `precision_share`, once it is proven to be FP16 but for the nodes `allowed_fp32`.

    Raises:
        VerificationError: other layers are FP32, which are named, or no layer is FP16.
    """
    onnx.checker.check_model(model, full_check=True)
    share = precision_share(model)
    unasked = [name for name in share.fp32_layer_names if name not in allowed_fp32]
    if unasked:
        raise VerificationError(f"FP16 was asked for, but these layers are FP32: {', '.join(unasked)}")
    if share.layers and not share.fp16_layers:
        raise VerificationError(
            f"FP16 was asked for, but all {share.layers} layers must stay in FP32; export without --fp16"
        )
    return share


def _weights_and_multiply_adds(node: onnx.NodeProto, shapes: dict[str, list[int]], stored: bool) -> tuple[int, int]:
    """Of one layer; a matrix that the network computes itself (not `stored`) is no weight."""
    taken, weight, output = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    # Each position of a convolution's output takes every weight once; each number that a matrix product gives, for one
    # image, is a sum over the last dimension of what it takes.
    factors = (*weight, *output[2:]) if node.op_type == "Conv" else (*taken[-1:], *output[1:])
    if not (taken and weight and output and all(factors)):
        raise VerificationError(f"the shape of layer {node.name} can't be inferred, so its share can't be read back")
    return math.prod(weight) if stored else 0, math.prod(factors)
