"""The nodes of an exported FP32 graph whose precision can be chosen: those that compute on floats, but for pixels."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, shape_inference

WEIGHTED = ("Conv", "Gemm", "MatMul")
MOVERS = (
    *("Relu", "MaxPool", "Concat", "Split", "Slice", "Gather", "Pad"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Identity"),
)
"""Operators whose output holds numbers of their input, so that FP16 rounds nothing that wasn't rounded before."""
_FP16 = "tensor(float16)"


@dataclass(frozen=True, slots=True)
class FloatNode:
    """One node of an FP32 graph that has float32 inputs and gives float32 outputs."""

    proto: onnx.NodeProto
    opset: int
    activations: tuple[str, ...]
    """The float32 inputs that depend on the picture, each once."""
    constants: tuple[str, ...]
    """The float32 inputs that are initialisers, each once, without a convolution's or Gemm's bias."""
    bias: str | None
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The node's name, unique in its graph."""
        return str(self.proto.name)

    @property
    def weighted(self) -> bool:
        """Whether the node is a convolution or a matrix product."""
        return self.proto.op_type in WEIGHTED

    @property
    def can_be_fp16(self) -> bool:
        """Whether ONNX defines the operator on FP16."""
        schema = _schema(self.proto.op_type, self.proto.domain, self.opset)
        return schema is None or _FP16 in schema.outputs[0].types

    def takes_fp16(self, index: int) -> bool:
        """Return whether input number `index` of the operator may be FP16; the scales of a Resize, say, may not."""
        return takes_fp16(self.proto, index, self.opset)


@dataclass(frozen=True, slots=True)
class FloatNodes:
    """The float nodes of a graph in running order, and its float32 values."""

    nodes: tuple[FloatNode, ...]
    floats: frozenset[str]
    """Every float32 value: activations and initialisers."""
    initialisers: dict[str, TensorProto]
    opset: int
    by_name: dict[str, FloatNode] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    def array(self, name: str) -> NDArray[np.float32]:
        """Return the values of the initialiser `name`."""
        values: NDArray[np.float32] = numpy_helper.to_array(self.initialisers[name])
        return values


def float_nodes(model: onnx.ModelProto, apart: Iterable[str] = ()) -> FloatNodes:
    """Return the float nodes of an FP32 `model`, without those called `apart`.

    A node that only makes floats (a Cast from integers, a constant) is none, as it has no precision to choose.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    floats |= {name for name, tensor in initialisers.items() if tensor.data_type == TensorProto.FLOAT}
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    apart = set(apart)
    nodes = []
    for proto in model.graph.node:
        taken = [name for name in dict.fromkeys(proto.input) if name in floats]
        activations = tuple(name for name in taken if name not in initialisers)
        outputs = tuple(name for name in proto.output if name in floats)
        if proto.name in apart or proto.op_type == "Cast" or not activations or not outputs:
            continue
        has_bias = proto.op_type in ("Conv", "Gemm") and len(proto.input) > 2 and proto.input[2] in initialisers
        bias = proto.input[2] if has_bias else None
        constants = tuple(name for name in taken if name in initialisers and name != bias)
        nodes.append(FloatNode(proto, opset, activations, constants, bias, outputs))
    return FloatNodes(tuple(nodes), frozenset(floats), initialisers, opset)


def takes_fp16(node: onnx.NodeProto, index: int, opset: int) -> bool:
    """Return whether ONNX lets input number `index` of `node` be FP16; True for operators that it doesn't define."""
    schema = _schema(node.op_type, node.domain, opset)
    # A variadic operator has one formal input, the last, for all that follow.
    return schema is None or _FP16 in schema.inputs[min(index, len(schema.inputs) - 1)].types


@cache
def _schema(operator: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    if not onnx.defs.has(operator, domain):
        return None
    return onnx.defs.get_schema(operator, opset, domain)
