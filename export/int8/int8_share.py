"""The share of a graph that is INT8, read back from the graph itself."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from fuseline.export.graph.graph_input import spatial_axes
from fuseline.export.graph.onnx_operations import operations_from_onnx
from fuseline.export.graph.precision_share import PrecisionShare
from fuseline.export.int8.operators import LAYERS


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The cost of a layer, whatever its precision."""

    weights: int
    """Number of weights."""
    multiply_adds: int
    """Number of multiply-adds for one image."""


def layer_costs(model: onnx.ModelProto) -> dict[str, LayerCost]:
    """Return name -> cost of the layers of `model`, an FP32 graph, in running order."""
    operations = operations_from_onnx(model, spatial_axes=spatial_axes(model)).operations
    return {
        operation.name: LayerCost(operation.weight.size, operation.multiply_adds)
        for operation in operations
        if operation.weight is not None and operation.kind in ("conv", "linear")
    }


def int8_share(model: onnx.ModelProto, costs: Mapping[str, LayerCost]) -> PrecisionShare:
    """Return the share of the layers whose activation and weights come from a DequantizeLinear, the weights int8.

    Args:
        costs: `layer_costs` of the graph that `model` was quantised from.
    """
    int8 = set(_int8_layers(model))
    return PrecisionShare(
        precision="int8",
        own_layers=len(int8),
        layers=len(costs),
        own_weights=sum(costs[name].weights for name in int8),
        weights=sum(cost.weights for cost in costs.values()),
        own_multiply_adds=sum(costs[name].multiply_adds for name in int8),
        multiply_adds=sum(cost.multiply_adds for cost in costs.values()),
        fp32_layer_names=tuple(name for name in costs if name not in int8),
    )


def _int8_layers(model: onnx.ModelProto) -> list[str]:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS
        and all(name in dequantised for name in list(node.input)[:2])
        and types.get(dequantised[node.input[1]]) == onnx.TensorProto.INT8
    ]
