"""What calibration records, held against PyTorch's own activations and casts."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from fuseline.export.fp16.layer_ranges import LayerRange, calibrate
from fuseline.export.graph import runtimes
from tests.export.fp16.hard_networks import MEAN, PIXELS, eager, graph_of
from tests.export.resnets import tiny_network


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return graph_of(tiny_network())[0]


@pytest.fixture(scope="module")
def ranges(graph: onnx.ModelProto) -> dict[str, LayerRange]:
    return {found.layer: found for found in calibrate(graph, PIXELS).ranges}


def test_inputs_and_outputs_are_what_pytorch_computes(ranges: dict[str, LayerRange]) -> None:
    network = tiny_network()
    seen: dict[str, float] = {}

    def record(name: str):
        def hook(module: torch.nn.Module, taken: tuple[torch.Tensor, ...], given: torch.Tensor) -> None:
            seen[f"{name} in"], seen[f"{name} out"] = float(taken[0].abs().max()), float(given.abs().max())

        return hook

    network.layer2[0].conv2.register_forward_hook(record("conv2"))
    network.layer2[0].bn2.register_forward_hook(record("bn2"))
    network.linear.register_forward_hook(record("linear"))
    eager(network, PIXELS)
    assert ranges["layer2.0.conv2"].largest_input == pytest.approx(seen["conv2 in"], rel=1e-4)
    # Folded, the layer gives what the BatchNorm gave; before the bias is added it may be more.
    assert ranges["layer2.0.conv2"].largest_output >= seen["bn2 out"] * (1 - 1e-4)
    assert ranges["fc"].largest_input == pytest.approx(seen["linear in"], rel=1e-4)
    pixels = np.abs(PIXELS - 255 * np.array(MEAN, np.float32)).max()
    assert ranges["conv1"].largest_input == pytest.approx(pixels, rel=1e-5)


def test_every_layer_is_there_with_ordinary_deviations(ranges: dict[str, LayerRange]) -> None:
    assert sum(found.weighted for found in ranges.values()) == 21
    assert {found.operator for found in ranges.values()} == {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}
    for found in ranges.values():
        assert (found.largest_weight is not None) == found.weighted
        assert (1e-4 < found.deviation < 1e-3) == (found.operator != "Relu"), found
        assert found.overflow_margin == pytest.approx(65504 / max(found.largest_input, found.largest_output))


def test_weights_are_judged_as_fp16_would_hold_them(graph: onnx.ModelProto, ranges: dict[str, LayerRange]) -> None:
    """The first layer's come with a power of two, so that they don't sink."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for layer, scale in (("conv1", 64), ("layer3.0.conv1", 1)):
        values = weights[f"{layer}.weight"] * scale
        fp16 = np.abs(values.astype(np.float16))
        found = ranges[layer]
        assert found.largest_weight == pytest.approx(np.abs(values).max())
        assert found.subnormal_share == pytest.approx(((fp16 < 2**-14) & (fp16 > 0)).mean(), abs=1e-3)
        assert found.lost_share == ((fp16 == 0) & (values != 0)).mean()
        assert found.weight_margin == pytest.approx(
            65504 / max(np.abs(values).max(), np.abs(weights[f"{layer}.bias"]).max())
        )


def test_what_is_summed_up_before_the_bias_counts() -> None:
    """A sum of 7e4 that a bias brings back to 1e4: FP16 accumulators overflow before it is added."""
    node = helper.make_node
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2, 8, 8])
    weights = {
        "fuseline_pixel_mean": np.zeros((3, 1, 1), np.float32),
        "conv.weight": np.full((2, 3, 1, 1), 7e4 / 765, np.float32),
        "conv.bias": np.array([-6e4, 0], np.float32),
    }
    nodes = [
        node("Transpose", ["image"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["floats"], "cast", to=onnx.TensorProto.FLOAT),
        node("Sub", ["floats", "fuseline_pixel_mean"], ["pixels"], "sub"),
        node("Conv", ["pixels", "conv.weight", "conv.bias"], ["logits"], "conv"),
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "one layer", [image], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for bias, largest in ((np.array([-6e4, -6e4]), 7e4), (np.array([3e4, 0]), 1e5)):
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), "conv.bias"))
        (found,) = calibrate(model, np.full((4, 8, 8, 3), 255, np.uint8)).ranges
        assert found.largest_output == pytest.approx(largest, rel=1e-5)


def test_many_batches_give_what_one_gives(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(graph, PIXELS[:10])
    monkeypatch.setattr(runtimes, "_MAX_BATCH_ROWS", 3)
    parts = calibrate(graph, PIXELS[:10])
    np.testing.assert_allclose(whole.logits, parts.logits, rtol=1e-5, atol=1e-6)
    for one, other in zip(whole.ranges, parts.ranges, strict=True):
        assert one.largest_output == pytest.approx(other.largest_output, rel=1e-5)
        assert one.typical_output == pytest.approx(other.typical_output, rel=1e-5)
        assert one.deviation == pytest.approx(other.deviation, rel=1e-2)
