"""The noise that INT8 adds to each layer, measured in one pass over a few images."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fuseline.export.graph.runtimes import run_batches
from fuseline.export.int8.operators import layers_of


def layer_noise(model: onnx.ModelProto, quantised: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Return layer -> noise that INT8 adds to its output, as a share of the output's power, the noisiest first.

    Each layer is computed twice from the same FP32 input: in FP32, and with its input and weights rounded as in
    `quantised`. So the noise is the layer's own, without that of layers before it. It costs one run of a graph of twice
    the size, however many layers there are.

    Args:
        model: FP32 graph.
        quantised: `model` with QDQ pairs; layers that are FP32 in it are left out.
        pixels: images (n, h, w, c).
    """
    twin, outputs = _with_twins(model, quantised)
    if not outputs:
        return {}
    totals: dict[str, float] = {}
    for sums in run_batches(twin, pixels, list(outputs)):
        for name, value in zip(outputs, sums, strict=True):
            totals[name] = totals.get(name, 0.0) + float(value)
    noise: dict[str, float] = {}
    for noise_name, layer in outputs.items():
        if noise_name.endswith(_NOISE):
            power = totals[layer + _POWER]
            noise[layer] = totals[noise_name] / power if power > 0 else 0.0
    return dict(sorted(noise.items(), key=lambda item: -item[1]))


_NOISE, _POWER = "#noise", "#power"


def _with_twins(model: onnx.ModelProto, quantised: onnx.ModelProto) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Return `model` with each layer of `quantised` beside its own and sums of squares as outputs; output -> layer."""
    graph_of = {node.output[0]: node for node in quantised.graph.node}
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in quantised.graph.initializer if tensor.name not in known)
    placed = {output for node in graph.node for output in node.output}
    outputs: dict[str, str] = {}
    by_name = {node.name: node for node in quantised.graph.node}
    for layer in layers_of(model):
        rounded = by_name[layer.name]
        if not all(name in graph_of and graph_of[name].op_type == "DequantizeLinear" for name in rounded.input[:2]):
            continue
        for name in rounded.input[:2]:
            _place(name, graph_of, placed, graph)
        name = layer.name
        copy = onnx.NodeProto()
        copy.CopyFrom(layer)
        copy.input[0], copy.input[1] = rounded.input[0], rounded.input[1]
        copy.output[0], copy.name = f"{name}#int8", f"{name}#int8"
        graph.node.extend(
            [
                copy,
                helper.make_node("Sub", [copy.output[0], layer.output[0]], [f"{name}#error"]),
                helper.make_node("ReduceSumSquare", [f"{name}#error"], [name + _NOISE], keepdims=0),
                helper.make_node("ReduceSumSquare", [layer.output[0]], [name + _POWER], keepdims=0),
            ]
        )
        for output in (name + _NOISE, name + _POWER):
            outputs[output] = name
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return twin, outputs


def _place(name: str, graph_of: Mapping[str, onnx.NodeProto], placed: set[str], graph: onnx.GraphProto) -> None:
    """Add to `graph` the QDQ nodes that make `name`; activations have the same names in both graphs."""
    node = graph_of.get(name)
    if node is None or name in placed or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    _place(node.input[0], graph_of, placed, graph)
    placed.add(name)
    graph.node.append(node)
