"""The FP16 graph: strongly typed, still uint8 in and float32 out."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx_graph import pixel_nodes, with_cast_first
from serve.errors import VerificationError
from serve.model_package import OUTPUT_NAME

# Pixels minus their mean reach 255; the weights that meet them were divided by 255 * std and would sink towards FP16's
# subnormal range. A power of two moves the scale from one to the other without any rounding.
_PIXEL_SCALE_LOG2 = 6
_COMPUTE_OPS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class PrecisionShare:
    """How much of a graph is FP16, read back from the graph itself."""

    fp16_layers: int
    layers: int
    """Convolutions and matrix products."""
    fp16_weights: int
    weights: int
    """Elements of floating-point initialisers that those layers use."""
    fp32_layer_names: tuple[str, ...]


def fp16_from_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` (as `onnx_from_network` makes it) that computes in FP16 from the first convolution on.

    It casts its pixels first, for TensorRT. The mean is subtracted in FP32, where it is exact to 2**-16, and only then
    cast to FP16; the logits are cast back.

    Raises:
        VerificationError: a weight is beyond FP16's largest finite number, 65504; the layer is named.
    """
    half = with_cast_first(model)
    graph = half.graph
    *arithmetic, transpose = [node for node in list(graph.node)[: len(pixel_nodes(model))] if node.op_type != "Cast"]
    keep = {node.input[1] for node in arithmetic}
    first = next(node for node in graph.node if node.input[0] == transpose.output[0])
    # Where the graph itself scales the pixels, they come in FP16's best range and no weight carries 1 / (255 * std).
    carries_scale = len(arithmetic) == 1

    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in keep:
            values = numpy_helper.to_array(tensor)
            if carries_scale and tensor.name == first.input[1]:
                values = values * np.float32(2**_PIXEL_SCALE_LOG2)
            tensor.CopyFrom(numpy_helper.from_array(_fp16(values, tensor.name), tensor.name))

    pixels, typed = transpose.output[0], "pixels_fp16"
    for node in graph.node:
        node.input[:] = [typed if name == pixels else name for name in node.input]
    inserted = []
    if carries_scale:
        scale_name, scaled = "pixel_scale_fp16", "pixels_scaled"
        graph.initializer.append(numpy_helper.from_array(np.float32(2**-_PIXEL_SCALE_LOG2), scale_name))
        inserted.append(helper.make_node("Mul", [pixels, scale_name], [scaled], name="pixels/scale"))
        pixels = scaled
    inserted.append(helper.make_node("Cast", [pixels], [typed], name="pixels/to_fp16", to=TensorProto.FLOAT16))
    last = next(node for node in graph.node if OUTPUT_NAME in node.output)
    last.output[0] = "logits_fp16"
    nodes = list(graph.node)
    at = nodes.index(transpose) + 1
    nodes[at:at] = inserted
    nodes.append(helper.make_node("Cast", ["logits_fp16"], [OUTPUT_NAME], name="logits/to_fp32", to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return half


def precision_share(model: onnx.ModelProto) -> PrecisionShare:
    """Count FP16 layers and weights by the types of the initialisers that each layer multiplies with."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    sizes = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in _COMPUTE_OPS]
    half = [node for node in layers if types.get(node.input[1]) == TensorProto.FLOAT16]
    names = {node.name for node in half}
    return PrecisionShare(
        fp16_layers=len(half),
        layers=len(layers),
        fp16_weights=sum(sizes[node.input[1]] for node in half),
        weights=sum(sizes[node.input[1]] for node in layers),
        fp32_layer_names=tuple(node.name for node in layers if node.name not in names),
    )


def check_fp16(model: onnx.ModelProto) -> PrecisionShare:
    """The graph's `precision_share`, or `VerificationError` naming the layers that are not FP16."""
    onnx.checker.check_model(model, full_check=True)
    share = precision_share(model)
    if share.fp32_layer_names:
        raise VerificationError(f"FP16 was asked for, but these layers are FP32: {', '.join(share.fp32_layer_names)}")
    return share


def _fp16(values: np.ndarray, name: str) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > limit:
        raise VerificationError(
            f"weight {name} reaches {largest:.6g}, beyond FP16's largest number {limit:.0f}; export without --fp16"
        )
    return values.astype(np.float16)
