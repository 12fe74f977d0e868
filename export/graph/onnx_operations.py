"""The operations of an ONNX graph, in the form of `fuseline.export.graph.operations`."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from fuseline.export.graph.operations import (
    Kind,
    Operation,
    OperationGraph,
    Pair,
    Permuted,
    Reach,
    Stepped,
    Window,
)
from fuseline.serve.errors import PackageError

_WINDOW_POOLS: Mapping[str, Kind] = {"MaxPool": "max-pool", "AveragePool": "average-pool"}
_GLOBAL_POOLS = ("GlobalAveragePool", "GlobalMaxPool")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum")
_MAP_STATISTICS = ("InstanceNormalization", "GroupNormalization")
# Operators of which only the first input is a map; the others are sizes, places or axes.
_ONE_MAP = ("Reshape", "Expand", "Slice", "Pad", "Resize", "Unsqueeze", "Squeeze", "Tile", *_REDUCTIONS)


def operations_from_onnx(model: onnx.ModelProto, spatial_axes: Pair) -> OperationGraph:
    """Return the operations of `model`, which takes one picture per row.

    Args:
        spatial_axes: axes of height and width in the model's input, counted from the last: (-3, -2) for NHWC.

    Raises:
        PackageError: shapes can't be inferred, a layer's shape isn't known, or the model doesn't take one input.
    """
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise PackageError(f"the ONNX graph's shapes can't be inferred: {error}; export the model again") from error
    if len(inferred.graph.input) != 1:
        raise PackageError(
            f"the ONNX graph takes {len(inferred.graph.input)} inputs, one was expected; export the model again"
        )
    reader = _Reader(inferred)
    (image,) = inferred.graph.input
    seen = {image.name}
    operations = []
    for node in inferred.graph.node:
        maps = list(node.input)[:1] if node.op_type in _ONE_MAP else list(node.input)
        taken = tuple(name for name in maps if name in seen)
        # A value that is computed from sizes alone doesn't depend on pixels.
        if not taken or node.op_type == "Shape":
            continue
        operations.append(reader.operation(node, taken))
        seen.update(node.output)
    return OperationGraph(image.name, reader.shape(image.name), spatial_axes, tuple(operations))


def float_elements(model: onnx.ModelProto) -> int:
    """Return the number of floating-point numbers in the graph's constants."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floats)


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._tensors[node.output[0]] = attribute.t
        self._shapes: dict[str, tuple[int, ...]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        self._counted: set[str] = set()

    def shape(self, value: str) -> tuple[int, ...]:
        """Return the shape of `value` without the batch; () where it isn't known."""
        shape = self._shapes.get(value, ())[1:]
        return shape if all(shape) else ()

    def operation(self, node: onnx.NodeProto, taken: tuple[str, ...]) -> Operation:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = self._weight(node, attributes)
        kind, reach = self._kind_and_reach(node, attributes, weight)
        shape = self.shape(node.output[0])
        if not shape and kind != "other":
            raise PackageError(f"the ONNX graph doesn't tell the shape of {node.name}'s output; export the model again")
        return Operation(
            name=node.name,
            kind=kind,
            inputs=taken,
            output=node.output[0],
            output_shape=shape,
            reach=reach,
            groups=int(attributes.get("group", 1)),
            weight=weight,
            weight_shape=() if weight is None else weight.shape,
            parameters=0 if weight is None else self._parameters(node),
            input_positions=math.prod(self.shape(taken[0])[-2:]) if kind == "transposed conv" else 1,
        )

    def _weight(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> NDArray[np.float32] | None:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in self._tensors:
            return None
        weight: NDArray[np.float32] = numpy_helper.to_array(self._tensors[node.input[1]]).astype(np.float32)
        # (out, in), as linear layers have it.
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes.get("transB", 0))
        return np.ascontiguousarray(np.swapaxes(weight, -1, -2)) if turned else weight

    def _parameters(self, node: onnx.NodeProto) -> int:
        own = [name for name in node.input[1:] if name in self._tensors and name not in self._counted]
        self._counted.update(own)
        return sum(math.prod(self._tensors[name].dims) for name in own)

    def _kind_and_reach(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], weight: NDArray[np.float32] | None
    ) -> tuple[Kind, Reach]:
        kind = node.op_type
        kernel = _pair(attributes.get("kernel_shape", weight.shape[2:] if weight is not None else (1, 1)))
        stride, dilation = _pair(attributes.get("strides", (1, 1))), _pair(attributes.get("dilations", (1, 1)))
        if kind == "Conv" and weight is not None:
            return "conv", Window(kernel, stride, dilation)
        if kind == "ConvTranspose" and weight is not None:
            height, width = (-(-((k - 1) * d + 1) // s) for k, d, s in zip(kernel, dilation, stride, strict=True))
            return "transposed conv", Window((height, width), (Fraction(1, stride[0]), Fraction(1, stride[1])))
        if kind in ("Gemm", "MatMul") and weight is not None:
            return "linear", "position"
        if kind in _WINDOW_POOLS:
            return _WINDOW_POOLS[kind], Window(kernel, stride, dilation)
        if kind in _GLOBAL_POOLS:
            return "global-pool", "everything"
        if kind in _REDUCTIONS:
            rank = len(self.shape(node.input[0])) + 1
            axes = {int(axis) % rank for axis in self._integers(node, 1, attributes.get("axes")) or range(rank)}
            return ("global-pool", "everything") if rank == 4 and axes == {2, 3} else ("other", "position")
        return "other", self._reach_of_others(node, attributes)

    def _reach_of_others(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Reach:
        match node.op_type:
            case "Transpose":
                return Permuted(tuple(attributes["perm"]))
            case "Pad":
                return Window()
            case "Slice":
                axes, steps = self._integers(node, 3), self._integers(node, 4)
                rank = len(self.shape(node.input[0])) + 1
                moved = [(axis % rank - rank, step) for axis, step in zip(axes, steps, strict=True) if step > 1]
                if len(moved) == 1:
                    return Stepped(*moved[0])
                along = dict(moved)
                return Window(stride=(along.get(-2, 1), along.get(-1, 1)))
            case "Resize":
                before, after = self.shape(node.input[0])[-2:], self.shape(node.output[0])[-2:]
                side = {b"nearest": 1, b"linear": 2, b"cubic": 4}[attributes.get("mode", b"nearest")]
                down, along_row = (Fraction(a, b) for a, b in zip(before, after, strict=True))
                return Window((side, side), (down, along_row))
        return "statistics" if node.op_type in _MAP_STATISTICS else "position"

    def _integers(self, node: onnx.NodeProto, index: int, attribute: Any = None) -> list[int]:
        """Return a list that is a constant input in newer opsets and an attribute in older ones."""
        if len(node.input) > index and node.input[index] in self._tensors:
            return [int(value) for value in numpy_helper.to_array(self._tensors[node.input[index]]).ravel()]
        return [int(value) for value in attribute or ()]


def _pair(value: Any) -> Pair:
    sizes = [int(size) for size in value]
    return (sizes[0], sizes[-1]) if sizes else (1, 1)
