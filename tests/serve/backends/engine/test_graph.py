"""The rewriting, held against ONNX Runtime's answers and the onnx package's reading."""

import numpy as np
import onnx
import onnxruntime
import pytest

from fuseline.serve.backends.engine.graph import graph_for_tensorrt
from tests.export.small_graph import ROW_SHAPE, quantised_graph, small_graph


def answers(graph: bytes):
    pixels = np.random.default_rng(0).integers(0, 256, (4, *ROW_SHAPE), np.uint8)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": pixels})[0]


@pytest.mark.parametrize("graph", [small_graph("fp32", transpose_first=True), quantised_graph()], ids=["fp32", "int8"])
def test_pixels_are_cast_first_and_the_function_stays_the_same(graph):
    rewritten = graph_for_tensorrt(graph)
    model = onnx.load_from_string(rewritten)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node][:2] == ["Cast", "Transpose"]
    np.testing.assert_array_equal(answers(rewritten), answers(graph))
    # All else is kept.
    before = onnx.load_from_string(graph)
    assert list(model.graph.node)[2:] == list(before.graph.node)[2:]
    assert list(model.graph.initializer) == list(before.graph.initializer)
    assert list(model.opset_import) == list(before.opset_import)


def test_what_the_exporter_noted_of_the_bytes_goes(tiny_package):
    graph = (tiny_package / "model.onnx").read_bytes()
    before, after = onnx.load_from_string(graph), onnx.load_from_string(graph_for_tensorrt(graph))
    planes = before.graph.node[0].output[0]
    assert [n.op_type for n in before.graph.node][:2] == ["Transpose", "Cast"]
    assert planes not in {value.name for value in after.graph.value_info}
    assert list(after.metadata_props) == list(before.metadata_props)
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize(
    "graph",
    [
        small_graph(),
        b"",
        b"no graph at all",
        small_graph()[:500],
        small_graph(input_name="pixels", transpose_first=True),
    ],
    ids=["cast first", "empty", "text", "truncated", "other input"],
)
def test_what_needs_no_rewriting_or_is_no_graph_comes_back_as_it_is(graph):
    assert graph_for_tensorrt(graph) == graph
