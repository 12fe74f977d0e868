"""Networks that overflow FP16: what a plain conversion makes of them, and what the mixed-precision search does."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from fuseline.export.fp16.fp16_graph import fp16_from_fp32
from fuseline.export.fp16.fp16_trial import stored_in_fp16
from fuseline.export.fp16.mixed_precision import SAFETY_MARGIN, MixedFp16Graph, mixed_fp16_from_fp32
from fuseline.export.graph.precision_share import check_share, precision_share
from fuseline.serve.errors import InputError, VerificationError
from tests.export.fp16.hard_networks import (
    HARD,
    PIXELS,
    eager,
    graph_of,
    hard_graph,
    openvino_logits,
    ort_logits,
    whisper,
)
from tests.export.resnets import tiny_network

VERIFICATION_BAR = 5e-2


@functools.cache
def mixed(name: str) -> MixedFp16Graph:
    graph, trained = hard_graph(name)
    return mixed_fp16_from_fp32(graph, PIXELS, layer_names=trained.layer_names)


@pytest.fixture(scope="module")
def good() -> tuple[onnx.ModelProto, dict[str, str]]:
    graph, trained = graph_of(tiny_network())
    return graph, dict(trained.layer_names)


def deviation(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(given - expected).max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("name", HARD)
def test_layers_that_fp16_cannot_hold_stay_in_fp32_and_no_others(name: str) -> None:
    assert {layer.layer for layer in mixed(name).kept} == HARD[name][1]


@pytest.mark.parametrize("name", HARD)
def test_the_mixed_graph_gives_the_answers_of_pytorch_fp32(name: str) -> None:
    """By both runtimes, and with every FP16 value stored in 16 bits, as on a GPU."""
    with torch.no_grad():
        network = HARD[name][0]()
    expected, model = eager(network, PIXELS), mixed(name).model
    for logits in (ort_logits(model), openvino_logits(model), ort_logits(stored_in_fp16(model))):
        assert np.isfinite(logits).all()
        assert (logits.argmax(1) == expected.argmax(1)).all()
        assert deviation(logits, expected) < 5e-3


@pytest.mark.parametrize("name", sorted(set(HARD) - {"whisper"}))
def test_a_plain_conversion_does_not(name: str) -> None:
    """It is refused for its weights, or gives NaN or logits that are far off on a GPU."""
    graph, _ = hard_graph(name)
    if max(np.abs(onnx.numpy_helper.to_array(tensor)).max() for tensor in graph.graph.initializer) > 65504:
        with pytest.raises(VerificationError, match="beyond FP16's largest number 65504"):
            fp16_from_fp32(graph)
        return
    plain = fp16_from_fp32(graph)
    logits = ort_logits(stored_in_fp16(plain))
    assert not deviation(logits, ort_logits(graph)) < VERIFICATION_BAR


@pytest.mark.parametrize("name", ["middle", "shortcut", "tiny variance", "weights alone", "last block"])
def test_pytorch_in_fp16_overflows_too(name: str) -> None:
    """Another implementation of FP16 that stores 16 bits: the networks are as hard as they are said to be."""
    with torch.no_grad():
        network = HARD[name][0]()
        for batchnorm in (child for child in network.modules() if isinstance(child, torch.nn.BatchNorm2d)):
            # As folding does, but in FP16.
            gain = batchnorm.weight / (batchnorm.running_var + batchnorm.eps).sqrt()
            batchnorm.bias.sub_(batchnorm.running_mean * gain)
            batchnorm.weight.copy_(gain)
            batchnorm.running_mean.zero_()
            batchnorm.running_var.fill_(1 - batchnorm.eps)
        logits = network.half()(torch.from_numpy(PIXELS).permute(0, 3, 1, 2).half() / 255 - 0.5)
    assert not torch.isfinite(logits).all()


@pytest.mark.parametrize("name", HARD)
def test_the_share_is_read_back_and_falls_by_what_stayed(name: str) -> None:
    found, whole = mixed(name).share, precision_share(hard_graph(name)[0], "fp16")
    stayed = {layer.range.layer for layer in mixed(name).kept if layer.range.weighted}
    assert found == precision_share(mixed(name).model, "fp16")
    assert (found.layers, found.weights, found.multiply_adds) == (whole.layers, whole.weights, whole.multiply_adds)
    assert found.own_layers == found.layers - len(stayed)
    assert 0 < found.own_weights < found.weights
    assert 0.5 * found.multiply_adds < found.own_multiply_adds < found.multiply_adds


@pytest.mark.parametrize("name", HARD)
def test_casts_stand_at_the_borders_only(name: str) -> None:
    model = onnx.shape_inference.infer_shapes(mixed(name).model, strict_mode=True)
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    # No value is cast to and fro, and none twice.
    assert not [node.name for node in casts.values() if node.input[0] in casts]
    assert len({node.input[0] for node in casts.values()}) == len(casts)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    fp32 = {node.name for node in model.graph.node if types.get(node.output[0]) == TensorProto.FLOAT} - {
        node.name for node in model.graph.node if node.name.startswith(("Transpose", "Cast", "Sub", "pixels/"))
    }
    assert {name for name in fp32 if "/to_" not in name} <= mixed(name).fp32_nodes


@pytest.mark.parametrize(
    ("name", "casts"),
    [
        # Into the region at its start, out of it at its end; and pixels to FP16, logits to FP32.
        ("middle", 2 + 2),
        ("weights alone", 2 + 2),
        # The residual and the shortcut of the sum come in, the logits are FP32 already.
        ("last block", 2 + 1),
        # In: layer2's last value to the shortcut, layer3.0.conv2 and layer3.1.conv2 to the sums; out: to
        # layer3.1.conv2, layer4.0.conv2, and the shortcut of layer4.0 to its sum.
        ("shortcut", 6 + 2),
    ],
)
def test_there_are_as_few_casts_as_can_be(name: str, casts: int) -> None:
    graph = mixed(name).model.graph
    of_floats = [node for node in graph.node if node.op_type == "Cast" and "image" not in node.input]
    assert len(of_floats) == casts, [node.name for node in of_floats]


@pytest.mark.parametrize("name", HARD)
def test_tensorrt_parses_and_builds_the_mixed_graph(name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
    from fuseline.serve.backends.engine.builder import build_engine

    found = mixed(name)
    stayed = [layer for layer in found.kept if layer.range.weighted]
    build = build_engine(
        found.model.SerializeToString(),
        precision="fp16",
        capability="sm89",
        max_batch=4,
        allowed_fp32=found.fp32_nodes,
    )
    assert build.achieved.layers == {"fp16": found.share.own_layers, "fp32": len(stayed)}
    assert build.achieved.multiply_adds["fp16"] == found.share.own_multiply_adds


def test_a_network_without_trouble_is_fp16_all_through_and_byte_equal(good) -> None:
    graph, layer_names = good
    told: list[float] = []
    found = mixed_fp16_from_fp32(graph, PIXELS, layer_names=layer_names, strict=True, on_progress=told.append)
    assert (found.kept, found.fp32_nodes) == ((), frozenset())
    plain = fp16_from_fp32(graph)
    assert found.model.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    assert found.share.own_layers == found.share.layers == 21
    assert found.share.own_multiply_adds == found.share.multiply_adds
    assert 0 < found.deviation < 1e-3
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_an_activation_within_the_margin_stays_in_fp16_and_one_beyond_does_not() -> None:
    """The largest value of one layer is brought to either side of 65504 / margin, by a scale that the next undoes."""
    graph, trained = graph_of(tiny_network())
    names = trained.layer_names
    ranges = {found.layer: found for found in mixed_fp16_from_fp32(graph, PIXELS, layer_names=names).ranges}
    to_the_limit = 65504 / SAFETY_MARGIN / ranges["layer2.1.conv1"].largest_output
    for factor, stays in ((0.9, False), (1.1, True)):
        scale = factor * to_the_limit
        by = {"layer2.1.conv1.weight": scale, "layer2.1.conv1.bias": scale, "layer2.1.conv2.weight": 1 / scale}
        scaled = onnx.ModelProto()
        scaled.CopyFrom(graph)
        for tensor in scaled.graph.initializer:
            if tensor.name in by:
                values = onnx.numpy_helper.to_array(tensor) * np.float32(by[tensor.name])
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        kept = {layer.layer: layer.reasons[0] for layer in mixed_fp16_from_fp32(scaled, PIXELS, layer_names=names).kept}
        assert ("layer2.1.conv1" in kept) == stays
        assert not stays or "its output reaches 1.80" in kept["layer2.1.conv1"]


def test_strict_refuses_and_lists_each_layer_with_its_figures() -> None:
    graph, trained = hard_graph("shortcut")
    with pytest.raises(VerificationError) as refused:
        mixed_fp16_from_fp32(graph, PIXELS, layer_names=trained.layer_names, strict=True)
    text = str(refused.value)
    assert all(f"{layer} (" in text for layer in HARD["shortcut"][1])
    assert "its output reaches 1.057e+05; FP16 ends at 65504" in text
    keep = ["layer3", r"layer4\.0\.(conv1|shortcut)"]
    found = mixed_fp16_from_fp32(graph, PIXELS, layer_names=trained.layer_names, strict=True, keep=keep)
    assert {layer.layer for layer in found.kept} >= HARD["shortcut"][1]
    assert all(layer.asked for layer in found.kept)


def test_layers_are_kept_on_request_by_the_names_of_the_checkpoint(good) -> None:
    graph, layer_names = good
    assert layer_names["layer2.0.downsample.0"] == "layer2.0.shortcut.0"
    found = mixed_fp16_from_fp32(graph, PIXELS, layer_names=layer_names, keep=["shortcut", "^linear$"], strict=True)
    assert [layer.layer for layer in found.kept] == [
        *("layer2.0.shortcut.0", "layer3.0.shortcut.0", "layer4.0.shortcut.0", "linear")
    ]
    assert all(layer.asked and "--keep-fp32" in layer.reasons[0] for layer in found.kept)
    assert found.share.own_layers == 17
    with pytest.raises(VerificationError, match=r"layer4\.0\.downsample\.0"):
        check_share(found.model, "fp16")
    assert deviation(ort_logits(found.model), ort_logits(graph)) < 1e-3


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("layer3.0.conv9", r"found in none.*near it are layer3\.0\.conv"), ("layer(", "no regular expression")],
)
def test_a_pattern_without_a_layer_is_refused_with_near_names(good, pattern: str, said: str) -> None:
    graph, layer_names = good
    with pytest.raises(InputError, match=said):
        mixed_fp16_from_fp32(graph, PIXELS, layer_names=layer_names, keep=[pattern])


def test_a_network_of_which_nothing_can_be_fp16_is_refused(good) -> None:
    graph, layer_names = good
    with pytest.raises(VerificationError, match="all 21 layers must stay in FP32"):
        mixed_fp16_from_fp32(graph, PIXELS, layer_names=layer_names, keep=["."])


def test_reasons_name_what_is_wrong_with_figures() -> None:
    reasons = {layer.layer: " ".join(layer.reasons) for layer in mixed("tiny variance").kept}
    assert "a folded weight of 1.863e+05 is beyond 65504" in reasons["layer3.1.conv1"]
    assert "a folded bias of 9.328e+05" in reasons["layer3.1.conv1"]
    assert "its input reaches" in reasons["layer3.1.conv2"]
    quiet = {layer.layer: layer for layer in mixed("whisper").kept}["layer2.0.conv1"]
    assert "of its weights become zero" in quiet.reasons[0]
    assert quiet.range.deviation > 0.05
    assert quiet.range.normal_margin < 0.1
    (moved,) = (layer for layer in mixed("large offset").kept if layer.layer == "layer2.1.conv1")
    assert "of the logits' range" in moved.reasons[0]


def test_fp32_that_overflows_by_itself_is_said() -> None:
    with torch.no_grad():
        network = whisper()
        network.layer1[0].bn1.weight.fill_(3e38)
    graph, trained = graph_of(network)
    with pytest.raises(VerificationError, match="FP32 graph itself"):
        mixed_fp16_from_fp32(graph, PIXELS, layer_names=trained.layer_names)
