"""FP16 graphs of networks that take normalised floats."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from fuseline.export.eager import eager_logits
from fuseline.export.fp16.fp16_graph import fp16_from_fp32, scaled_first_layer
from fuseline.export.fp16.fp16_trial import stored_in_fp16
from fuseline.export.fp16.mixed_precision import mixed_fp16_from_fp32
from fuseline.export.graph.precision_share import check_share, precision_share
from fuseline.export.graph.runtimes import int8_logits_by_runtime, onnxruntime_logits
from fuseline.export.recognition.architectures import recognise
from fuseline.export.sample import generated_sample
from tests.export.float_graphs import FLOATS, NORMALIZATION, graph_taking, spec_of
from tests.export.fp16.hard_networks import middle
from tests.export.resnets import tiny_network, trained_like

PIXELS = generated_sample(spec_of("uint8-nhwc"), 24).pixels


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    module = recognise(tiny_network().state_dict()).module
    return {takes: graph_taking(takes, module) for takes in FLOATS}


def casts(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Cast"]


def close(logits: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(logits - expected).max() < 5e-3 * np.ptp(expected))


@pytest.mark.parametrize("takes", FLOATS)
def test_the_graph_is_fp16_all_through_and_close_on_every_runtime(
    graphs: dict[str, onnx.ModelProto], takes: str
) -> None:
    fp16 = fp16_from_fp32(graphs[takes])
    onnx.checker.check_model(fp16, full_check=True)
    assert check_share(fp16, "fp16").own_layers == 21
    # FP16 floats need no cast, FP32 ones have one.
    assert casts(fp16) == [*(["image/to_fp16"] if takes == "fp32-nchw" else []), "logits/to_fp32"]
    assert fp16.graph.input[0].type == graphs[takes].graph.input[0].type
    assert fp16.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    expected = onnxruntime_logits(graphs[takes], PIXELS)
    for logits in (*int8_logits_by_runtime(fp16, PIXELS).values(), onnxruntime_logits(stored_in_fp16(fp16), PIXELS)):
        assert close(logits, expected)


@pytest.mark.parametrize("takes", FLOATS)
@pytest.mark.parametrize("fp32", [{"conv1"}, {"conv1", "Relu"}, {"layer2.0/Add"}, {"fc"}])
def test_any_choice_of_layers_is_a_valid_graph_of_the_same_function(
    graphs: dict[str, onnx.ModelProto], takes: str, fp32: set[str]
) -> None:
    mixed = fp16_from_fp32(graphs[takes], fp32)
    onnx.checker.check_model(mixed, full_check=True)
    expected = onnxruntime_logits(graphs[takes], PIXELS)
    for each in (mixed, stored_in_fp16(mixed)):
        assert close(onnxruntime_logits(each, PIXELS), expected)
    if "conv1" in fp32:
        assert precision_share(mixed, "fp16").fp32_layer_names == ("conv1",)
        # An FP32 first layer takes FP32 floats as they are, and FP16 ones by one cast.
        first = next(node for node in mixed.graph.node if node.name == "conv1")
        assert (first.input[0] == "image") == (takes == "fp32-nchw")


@pytest.mark.parametrize("takes", FLOATS)
def test_the_search_gives_the_plain_graph_where_fp16_holds_every_layer(
    graphs: dict[str, onnx.ModelProto], takes: str
) -> None:
    found = mixed_fp16_from_fp32(graphs[takes], PIXELS, layer_names={})
    assert not found.kept
    assert 0 < found.deviation < 5e-3
    plain = fp16_from_fp32(graphs[takes])
    assert found.model.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    first = found.ranges[0]
    assert first.layer == "conv1"
    assert 1 < first.largest_input < 3, "normalised pixels"
    assert first.subnormal_share == 0.0
    assert scaled_first_layer(graphs[takes]) is None


@pytest.mark.parametrize("takes", FLOATS)
def test_the_overflow_guard_keeps_what_fp16_cannot_hold_in_fp32(takes: str) -> None:
    with torch.no_grad():
        network = middle()
    graph = graph_taking(takes, recognise(network.state_dict()).module)
    found = mixed_fp16_from_fp32(graph, PIXELS, layer_names={})
    assert "layer2.1.conv1" in {kept.layer for kept in found.kept}
    assert found.deviation < 1e-2
    expected = onnxruntime_logits(graph, PIXELS)
    assert close(onnxruntime_logits(stored_in_fp16(found.model), PIXELS), expected)


class _Layers(nn.Module):
    """Layers of which each network below uses some."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.second = nn.Conv2d(channels, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)
        self.whole = nn.Linear(channels * 16 * 16, 5)

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(torch.relu(maps).mean(dim=(2, 3)))
        return logits


class NormFirst(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.first(torch.relu(self.norm(images))))


class ReadTwice(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.first(images) + self.second(images))


class PoolFirst(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.first(nn.functional.max_pool2d(images, 2)))


class Linear(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.whole(images.view(images.shape[0], -1))
        return logits


@pytest.mark.parametrize("takes", FLOATS)
@pytest.mark.parametrize("network", [NormFirst, ReadTwice, PoolFirst, Linear])
def test_networks_that_begin_otherwise_than_with_one_convolution(takes: str, network: type[_Layers]) -> None:
    torch.manual_seed(0)
    module = trained_like(network().eval())
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    expected = eager_logits(module, pixels, NORMALIZATION, lambda _: None)
    graph = graph_taking(takes, module, side=16)
    assert np.abs(onnxruntime_logits(graph, pixels) - expected).max() < 1e-3 * np.ptp(expected)
    mixed = mixed_fp16_from_fp32(graph, pixels, layer_names={})
    assert not mixed.kept
    for each in (mixed.model, fp16_from_fp32(graph, {"first", "whole"}), stored_in_fp16(mixed.model)):
        onnx.checker.check_model(each, full_check=True)
        assert close(onnxruntime_logits(each, pixels), expected)
