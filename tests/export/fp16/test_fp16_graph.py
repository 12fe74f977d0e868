"""Mixed graphs node by node; the graph that is FP16 all through is tested in tests/export/graph/test_onnx_graph.py."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fuseline.export.fp16.fp16_graph import fp16_from_fp32
from fuseline.export.fp16.fp16_trial import stored_in_fp16
from fuseline.export.graph.precision_share import precision_share
from tests.export.fp16.hard_networks import PIXELS, graph_of, openvino_logits, ort_logits
from tests.export.resnets import tiny_network


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return graph_of(tiny_network())[0]


def with_nodes(graph: onnx.ModelProto, nodes: list[onnx.NodeProto], **tensors: np.ndarray) -> onnx.ModelProto:
    """`graph` with `nodes` between its logits, now `scores`, and its output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.node[-1].output[0] = "scores"
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    del copy.graph.value_info[:]
    onnx.checker.check_model(copy, full_check=True)
    return copy


def names(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node}


def test_an_fp32_first_layer_takes_the_pixels_as_they_are(graph: onnx.ModelProto) -> None:
    mixed = fp16_from_fp32(graph, {"conv1", "Relu"})
    assert not {"pixels/scale", "pixels/to_fp16"} & names(mixed)
    assert "Relu/to_fp16" in names(mixed)
    assert precision_share(mixed, "fp16").fp32_layer_names == ("conv1",)
    assert "pixels/scale" in names(fp16_from_fp32(graph))


def test_an_fp32_last_layer_gives_the_logits_without_a_cast(graph: onnx.ModelProto) -> None:
    mixed = fp16_from_fp32(graph, {"fc"})
    assert "logits/to_fp32" not in names(mixed)
    assert "ReduceMean/to_fp32" in names(mixed)


@pytest.mark.parametrize("fp32", [{"layer1.0.conv1"}, {"layer2.0/Add"}, {"layer3.1.conv1", "layer3.1.conv2"}, {"fc"}])
def test_any_choice_of_layers_is_a_valid_graph_of_the_same_function(graph: onnx.ModelProto, fp32: set[str]) -> None:
    mixed = fp16_from_fp32(graph, fp32)
    onnx.checker.check_model(mixed, full_check=True)
    expected = ort_logits(graph)
    for logits in (ort_logits(mixed), openvino_logits(mixed), ort_logits(stored_in_fp16(mixed))):
        assert np.abs(logits - expected).max() < 5e-3 * (expected.max() - expected.min())


def test_a_constant_that_both_precisions_read_is_there_in_both(graph: onnx.ModelProto) -> None:
    scale = np.full((1,), 1.5, np.float32)
    nodes = [
        helper.make_node("Mul", ["scores", "scale"], ["twice"], "first"),
        helper.make_node("Mul", ["twice", "scale"], ["logits"], "second"),
    ]
    shared = with_nodes(graph, nodes, scale=scale)
    mixed = fp16_from_fp32(shared, {"second"})
    types = {tensor.name: tensor.data_type for tensor in mixed.graph.initializer}
    assert (types["scale"], types["scale_fp16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert np.abs(ort_logits(mixed) - ort_logits(shared)).max() < 1e-2


def test_inputs_that_onnx_wants_in_fp32_stay_so(graph: onnx.ModelProto) -> None:
    """The scales of a Resize; and floats that come of integers are cast for their readers."""
    nodes = [
        helper.make_node("Unsqueeze", ["scores", "axes"], ["map"], "unsqueeze"),
        helper.make_node("Resize", ["map", "", "scales"], ["resized"], "resize", mode="nearest"),
        helper.make_node("Squeeze", ["resized", "axes"], ["squeezed"], "squeeze"),
        helper.make_node("Shape", ["squeezed"], ["shape"], "shape", start=1),
        helper.make_node("Cast", ["shape"], ["classes"], "count", to=TensorProto.FLOAT),
        helper.make_node("Div", ["squeezed", "classes"], ["logits"], "div"),
    ]
    odd = with_nodes(graph, nodes, axes=np.array([1, 2]), scales=np.ones(4, np.float32))
    fp16 = fp16_from_fp32(odd)
    onnx.checker.check_model(fp16, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in fp16.graph.initializer}
    assert types["scales"] == TensorProto.FLOAT
    assert "count/to_fp16" in names(fp16)
    assert np.abs(ort_logits(fp16) - ort_logits(odd)).max() < 1e-2


def test_the_stored_graph_holds_nothing_that_16_bits_would_not(graph: onnx.ModelProto) -> None:
    fp16 = fp16_from_fp32(graph)
    stored = stored_in_fp16(fp16)
    values = [node.output[0] for node in fp16.graph.node if node.op_type in ("Conv", "Relu", "Add", "Gemm")]
    stored.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    for given in onnxruntime.InferenceSession(stored.SerializeToString()).run(values, {"image": PIXELS[:2]}):
        assert given.dtype == np.float32
        assert (given == given.astype(np.float16)).all()
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in stored.graph.initializer}
