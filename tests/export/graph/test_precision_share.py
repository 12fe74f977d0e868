"""Shares that are read back from graphs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fuseline.export.fp16.fp16_graph import fp16_from_fp32
from fuseline.export.graph.precision_share import check_share, precision_share
from fuseline.serve.errors import VerificationError
from tests.export.fp16.hard_networks import PIXELS, eager, graph_of
from tests.export.resnets import tiny_network


def test_multiply_adds_and_weights_are_those_of_the_pytorch_module() -> None:
    network = tiny_network()
    counted: dict[str, int] = {}

    def count(name: str):
        def hook(module: torch.nn.Module, _: object, given: torch.Tensor) -> None:
            counted[name] = module.weight.numel() * given[0, 0].numel()

        return hook

    for name, child in network.named_modules():
        if isinstance(child, torch.nn.Conv2d | torch.nn.Linear):
            child.register_forward_hook(count(name))
    eager(network, PIXELS[:1])
    graph, _ = graph_of(network)
    share = precision_share(graph, "fp16")
    assert share.multiply_adds == sum(counted.values())
    assert (share.own_layers, share.own_weights, share.own_multiply_adds) == (0, 0, 0)
    mixed = precision_share(fp16_from_fp32(graph, {"layer2.0.conv2"}), "fp16")
    assert mixed.own_multiply_adds == share.multiply_adds - counted["layer2.0.conv2"]
    assert mixed.own_weights == share.weights - network.layer2[0].conv2.weight.numel()
    assert mixed.fp32_layer_names == ("layer2.0.conv2",)


def test_fp32_layers_that_were_not_asked_for_are_named() -> None:
    graph, _ = graph_of(tiny_network())
    mixed = fp16_from_fp32(graph, {"layer2.0.conv2", "fc"})
    assert check_share(mixed, "fp16", {"layer2.0.conv2", "fc"}).own_layers == 19
    with pytest.raises(VerificationError, match=r"these layers are FP32: layer2\.0\.conv2$"):
        check_share(mixed, "fp16", {"fc"})
    with pytest.raises(VerificationError, match="all 21 layers must stay in FP32"):
        check_share(graph, "fp16", {node.name for node in graph.graph.node})


def test_a_product_of_two_computed_matrices_has_multiply_adds_and_no_weights() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["keys"], "projection"),
        node("Transpose", ["keys"], ["turned"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["keys", "turned"], ["scores"], "attention"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5, 5])],
        [numpy_helper.from_array(np.ones((16, 8), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    share = precision_share(model, "fp16")
    assert (share.layers, share.weights) == (2, 128)
    assert share.multiply_adds == 5 * 16 * 8 + 5 * 5 * 8
