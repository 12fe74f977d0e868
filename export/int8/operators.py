"""The nodes of a graph that are quantised, and so the tensors."""

from collections.abc import Collection

import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators that carry weights."""
POOLS = ("MaxPool", "ReduceMean", "GlobalAveragePool", "AveragePool")
QUANTISED_OPERATORS = (*LAYERS, *POOLS, "Add")
_MOVES = ("Reshape", "Flatten", "Squeeze")
VALUE_KEEPING = (*_MOVES, "MaxPool", "Slice", "Pad")
"""Operators whose output holds values of their input, and zeros."""


def layers_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes that multiply an activation by a weight of the graph, in running order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node
        for node in model.graph.node
        if node.op_type in LAYERS and node.input[1] in weights and node.input[0] not in weights
    )


def quantised_nodes(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes whose inputs are quantised when the layers called `keep_fp32` are not.

    They are layers; additions of two activations, which are residual ones; and pools, unless they feed a layer that
    stays FP32 (a MaxPool is always quantised).
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = {node.name for node in layers_of(model)}
    fp32_inputs = _inputs_traced_back(model, keep_fp32)
    chosen = []
    for node in model.graph.node:
        if node.op_type in LAYERS:
            wanted = node.name in layers and node.name not in keep_fp32
        elif node.op_type == "Add":
            wanted = not weights.intersection(node.input)
        else:
            wanted = node.op_type in POOLS and (node.op_type == "MaxPool" or node.output[0] not in fp32_inputs)
        if wanted:
            chosen.append(node)
    return tuple(chosen)


def quantised_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the activations that may be quantised, in running order: inputs of `quantised_nodes`, MaxPool outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in quantised_nodes(model):
        count = 2 if node.op_type == "Add" else 1
        names.update(dict.fromkeys(name for name in list(node.input)[:count] if name not in weights))
        if node.op_type == "MaxPool":
            names[node.output[0]] = None
    return tuple(names)


def _inputs_traced_back(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """Return the inputs of the nodes called `layers`, and the values that these were reshaped from."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found = set()
    for node in model.graph.node:
        if node.name in layers:
            name = node.input[0]
            found.add(name)
            while name in producers and producers[name].op_type in _MOVES:
                name = producers[name].input[0]
                found.add(name)
    return found
