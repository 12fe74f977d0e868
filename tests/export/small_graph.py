"""A residual network small enough to build in a test, in the form of the exporter's graphs."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROW_SHAPE = (16, 16, 3)
CLASSES = 5


def small_graph(
    precision: str = "fp16",
    *,
    unknown_operators: int = 0,
    input_name: str = "image",
    transpose_first: bool = False,
    fp32_classifier: bool = False,
) -> bytes:
    """`image` uint8 NHWC -> float NCHW, centred, stem, pool, a block with a shortcut, classifier -> `logits`."""
    rng = np.random.default_rng(7)
    is_fp16 = precision == "fp16"
    scalar, compute = (np.float16, TensorProto.FLOAT16) if is_fp16 else (np.float32, TensorProto.FLOAT)
    of_classifier = np.float32 if fp32_classifier else scalar

    def weight(name: str, *shape: int, scalar: type = scalar) -> onnx.TensorProto:
        values: NDArray[np.float64] = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        return numpy_helper.from_array(values.astype(scalar), name)

    weights = [
        numpy_helper.from_array(np.array([123.7, 116.3, 103.5], np.float32).reshape(1, 3, 1, 1), "mean"),
        *(weight("stem.weight", 8, 3, 3, 3), weight("stem.bias", 8)),
        *(weight("block.weight", 8, 8, 3, 3), weight("block.bias", 8)),
        *(weight("fc.weight", CLASSES, 8, scalar=of_classifier), weight("fc.bias", CLASSES, scalar=of_classifier)),
    ]
    node = helper.make_node
    cast, transpose = {"name": "to_float", "to": TensorProto.FLOAT}, {"name": "to_nchw", "perm": [0, 3, 1, 2]}
    if transpose_first:
        reading = [node("Transpose", [input_name], ["a"], **transpose), node("Cast", ["a"], ["b"], **cast)]
    else:
        reading = [node("Cast", [input_name], ["a"], **cast), node("Transpose", ["a"], ["b"], **transpose)]
    nodes = [
        *reading,
        node("Sub", ["b", "mean"], ["centred"], "centre"),
        node("Cast", ["centred"], ["nchw"], "to_compute", to=compute),
        node("Conv", ["nchw", "stem.weight", "stem.bias"], ["stem"], "stem/Conv", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["stem"], ["stem.relu"], "stem/Relu"),
        node("MaxPool", ["stem.relu"], ["pooled"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Conv", ["pooled", "block.weight", "block.bias"], ["block"], "block/Conv", pads=[1] * 4),
        node("Add", ["block", "pooled"], ["sum"], "block/Add"),
        node("Relu", ["sum"], ["block.relu"], "block/Relu"),
        node("GlobalAveragePool", ["block.relu"], ["mean_of_pixels"], "gap"),
        node(
            "Cast", ["mean_of_pixels"], ["means"], "to_classifier", to=TensorProto.FLOAT if fp32_classifier else compute
        ),
        node("Flatten", ["means"], ["features"], "flatten"),
        node("Gemm", ["features", "fc.weight", "fc.bias"], ["scores"], "fc/Gemm", transB=1),
        *(node(f"NoSuchOperator{i}", ["scores"], [f"nowhere{i}"], f"strange{i}") for i in range(unknown_operators)),
        node("Cast", ["scores"], ["logits"], "to_logits", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["batch", *ROW_SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def quantised_graph() -> bytes:
    """`small_graph("fp32")` with its block and its classifier between QuantizeLinear and DequantizeLinear."""
    model = onnx.load_from_string(small_graph("fp32", transpose_first=True))
    graph, nodes = model.graph, []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    graph.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    for node in list(graph.node):
        if node.name in ("block/Conv", "fc/Gemm"):
            source, name = node.input[0], node.input[1]
            values = numpy_helper.to_array(weights[name])
            scales = (np.abs(values).reshape(len(values), -1).max(axis=1) / 127).astype(np.float32)
            integers = np.round(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
            graph.initializer.remove(weights[name])
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}.int8"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
            graph.initializer.append(numpy_helper.from_array(np.zeros(len(values), np.int8), f"{name}.zeros"))
            weight = [f"{name}.int8", f"{name}.scales", f"{name}.zeros"]
            nodes += [
                helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{name}.q"], f"{name}/q"),
                helper.make_node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.dq"], f"{name}/dq"),
                helper.make_node("DequantizeLinear", weight, [f"{name}.w"], f"{name}/w", axis=0),
            ]
            node.input[0], node.input[1] = f"{name}.dq", f"{name}.w"
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    data: bytes = model.SerializeToString()
    return data
