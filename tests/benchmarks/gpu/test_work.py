"""Counted by hand on a network of three layers, and against published figures."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fuseline.benchmarks.gpu.work import NetworkWork, network_work
from fuseline.export.graph.onnx_operations import operations_from_onnx

SIDE, WIDTH, CLASSES = 4, 8, 5


def small_network() -> onnx.ModelProto:
    """Pixels, a 3 x 3 convolution, a 1 x 1 convolution whose input is added to its output, a pool, a linear layer."""
    weights = {
        "w1": np.ones((WIDTH, 3, 3, 3), np.float32),
        "b1": np.ones(WIDTH, np.float32),
        "w2": np.ones((WIDTH, WIDTH, 1, 1), np.float32),
        "w3": np.ones((CLASSES, WIDTH), np.float32),
        "b3": np.ones(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2"),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def work() -> NetworkWork:
    return network_work(operations_from_onnx(small_network(), (-3, -2)))


def test_multiply_adds_and_weights_are_counted(work: NetworkWork) -> None:
    positions = SIDE * SIDE
    assert work.multiply_adds == positions * (27 * WIDTH + WIDTH * WIDTH) + WIDTH * CLASSES
    assert work.weight_elements == 27 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH * CLASSES + CLASSES
    assert work.flops(3) == 6 * work.multiply_adds


def test_maps_are_read_and_written_once_and_pixels_are_bytes(work: NetworkWork) -> None:
    pixels, wide = 3 * SIDE * SIDE, WIDTH * SIDE * SIDE
    written_of_pixels = pixels
    convolutions = (pixels + wide) + (wide + wide)
    added, pooled, linear = wide, wide + WIDTH, WIDTH + CLASSES
    assert work.map_elements == written_of_pixels + convolutions + added + pooled + linear
    assert work.pixel_bytes == pixels
    assert work.bytes(10, 2) == 2 * (work.weight_elements + 10 * work.map_elements) + 10 * pixels
