"""The trial of a choice of layers in FP16: how far it moves the logits, as a GPU would compute them.

On a GPU each FP16 value is stored in 16 bits, and sums are accumulated in 32. On a CPU, ONNX Runtime and OpenVINO
compute FP16 nodes in FP32 and leave out the roundings in between, so that an overflow in the middle of a network may
not show, and an FP16 graph that runs there proves little about a GPU. So a trial runs an FP32 graph that rounds as a
GPU does.
"""

from collections.abc import Callable, Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fuseline.export.fp16.float_nodes import FloatNodes
from fuseline.export.fp16.fp16_graph import fp16_from_fp32, with_unweighted_behind
from fuseline.export.graph.runtimes import onnxruntime_logits


class Fp16Trial:
    """Trials of an FP32 graph on images; FP16 is compared with the graph's own `logits` (n, classes) for them."""

    def __init__(
        self, model: onnx.ModelProto, nodes: FloatNodes, pixels: NDArray[np.uint8], logits: NDArray[np.float32]
    ) -> None:
        self._model, self._nodes, self._pixels, self._logits = model, nodes, pixels, logits

    def deviation(self, kept: Collection[str], on_progress: Callable[[float], None] = lambda _: None) -> float:
        """Return the largest difference of a logit from FP32's, as a share of their range, with `kept` in FP32.

        It is infinite where FP16 gives NaN or infinity.
        """
        return self._deviation(with_unweighted_behind(self._nodes, kept), on_progress)

    def deviation_of(self, fp16_nodes: Collection[str]) -> float:
        """Return the deviation with only `fp16_nodes` in FP16, whatever they read."""
        return self._deviation({node.name for node in self._nodes.nodes} - set(fp16_nodes))

    def _deviation(self, fp32_nodes: Collection[str], on_progress: Callable[[float], None] = lambda _: None) -> float:
        logits = onnxruntime_logits(stored_in_fp16(fp16_from_fp32(self._model, fp32_nodes)), self._pixels, on_progress)
        difference = float(np.abs(logits.astype(np.float64) - self._logits).max())
        if difference == 0:
            return 0.0
        spread = float(self._logits.max() - self._logits.min())
        return difference / spread if np.isfinite(difference) and spread else np.inf


def stored_in_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in FP32 and rounds each value that is FP16 in `model` to FP16, with overflow.

    An FP16 input stays FP16, and is read in FP32.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    fp16 = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes: list[onnx.NodeProto] = []
    read_as: dict[str, str] = {}
    for taken in model.graph.input:
        if taken.type.tensor_type.elem_type == TensorProto.FLOAT16:
            read_as[taken.name] = f"{taken.name}/wide"
            nodes.append(helper.make_node("Cast", [taken.name], [f"{taken.name}/wide"], to=TensorProto.FLOAT))
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [read_as.get(name, name) for name in copy.input]
        # A Cast to FP16 rounds by itself.
        rounds = node.op_type == "Cast"
        nodes.append(copy)
        for index, name in enumerate(node.output):
            if name not in fp16:
                continue
            stored = f"{name}/stored"
            copy.output[index] = stored if rounds else f"{name}/computed"
            if not rounds:
                nodes.append(helper.make_node("Cast", [f"{name}/computed"], [stored], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide
