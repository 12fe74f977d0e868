"""What a GPU computes from an FP16 graph, as an FP32 graph that any runtime on a CPU runs faithfully.

On a GPU each FP16 value is stored in 16 bits, and sums are accumulated in 32. On a CPU ONNX Runtime and OpenVINO
compute FP16 nodes in FP32 and leave roundings in between out, so that an overflow in the middle of a network may not
show: that the FP16 graph runs there proves little about a GPU.
"""

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference


def stored_in_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes in FP32 and rounds to FP16, overflow included, each value that is FP16 in `model`."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    half = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        # A Cast to FP16 rounds by itself.
        rounds = node.op_type == "Cast"
        nodes.append(copy)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            stored = f"{name}/stored"
            copy.output[index] = stored if rounds else f"{name}/computed"
            if not rounds:
                nodes.append(helper.make_node("Cast", [f"{name}/computed"], [stored], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide
