"""The two forms of the quantised graph: what they promise, and that the runtimes take them for INT8."""

import logging
import tempfile
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fuseline.export.graph.onnx_graph import pixel_nodes
from fuseline.export.graph.runtimes import int8_logits_by_runtime, onnxruntime_logits, serialised
from fuseline.export.int8.calibrators import Range, min_max
from fuseline.export.int8.closeness import logit_error
from fuseline.export.int8.histograms import activation_histograms
from fuseline.export.int8.int8_share import int8_share, layer_costs
from fuseline.export.int8.operators import quantised_tensors
from fuseline.export.int8.quantiser import quantised_for_cpus, quantised_for_tensorrt
from fuseline.export.recognition.networks.resnet import ResNet
from fuseline.export.recognition.networks.resnet_spec import ResNetSpec
from tests.export.int8.networks import Subject, layers, subject
from tests.export.recognition.preact_resnets import PreActNetwork
from tests.export.resnets import CifarBottleneck, CifarResNet

FORMS = pytest.mark.parametrize("quantise", [quantised_for_cpus, quantised_for_tensorrt])


def graph_run_by_onnxruntime(model: onnx.ModelProto, folder) -> onnx.ModelProto:
    """What its optimiser makes of `model`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(serialised(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def operators_run_by_openvino(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Kind and precision of every layer that it runs, constants left out."""
    from fuseline.serve.backends.openvino import open_request

    compiled = open_request(serialised(model)).get_compiled_model()
    infos = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))) for info in infos]
    return [kind for kind in kinds if kind[0] != "Const"]


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@FORMS
def test_the_graph_says_of_itself_what_the_fp32_graph_says(
    tiny: Subject, tiny_ranges: dict[str, Range], quantise
) -> None:
    model = quantise(tiny.model, tiny_ranges)
    onnx.checker.check_model(model, full_check=True)
    of_fp32 = {node.name: node.op_type for node in tiny.model.graph.node}
    assert of_fp32.items() <= {node.name: node.op_type for node in model.graph.node}.items()
    others = [node for node in model.graph.node if node.name not in of_fp32]
    assert {node.op_type for node in others} == {"QuantizeLinear", "DequantizeLinear"}
    assert {node.name.rpartition("/")[0] for node in others if node.op_type == "QuantizeLinear"} <= of_fp32.keys()
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert model.metadata_props == tiny.model.metadata_props
    assert (model.producer_name, model.producer_version) == (tiny.model.producer_name, tiny.model.producer_version)
    assert model.graph.input == tiny.model.graph.input
    assert model.graph.output == tiny.model.graph.output
    assert [node.op_type for node in model.graph.node[:3]] == ["Transpose", "Cast", "Sub"]
    assert pixel_nodes(model) == pixel_nodes(tiny.model)
    assert tempfile.gettempdir().encode() not in serialised(model)


@FORMS
def test_the_same_input_gives_the_same_bytes_and_touches_nothing_else(
    tiny: Subject, tiny_ranges: dict[str, Range], quantise, tmp_path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = serialised(tiny.model)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    first, second = (serialised(quantise(tiny.model, tiny_ranges)) for _ in range(2))
    assert first == second
    assert serialised(tiny.model) == before
    assert (root.handlers, root.level) == (handlers, level)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_onnx_runtime_computes_every_layer_and_addition_in_int8(
    tiny: Subject, tiny_ranges: dict[str, Range], tmp_path
) -> None:
    run = Counter(
        node.op_type
        for node in graph_run_by_onnxruntime(quantised_for_cpus(tiny.model, tiny_ranges), tmp_path).graph.node
    )
    convolutions = sum(node.op_type == "Conv" for node in tiny.model.graph.node)
    additions = sum(node.op_type == "Add" for node in tiny.model.graph.node)
    assert (run["QLinearConv"], run["QLinearAdd"], run["QGemm"]) == (convolutions, additions, 1)
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu"} & run.keys()


def test_openvino_computes_every_layer_in_int8_and_fuses_additions_into_them(
    tiny: Subject, tiny_ranges: dict[str, Range]
) -> None:
    run = operators_run_by_openvino(quantised_for_cpus(tiny.model, tiny_ranges))
    weighted = [precision for kind, precision in run if kind in ("Convolution", "FullyConnected")]
    assert len(weighted) == len(layers(tiny.model))
    assert set(weighted) <= {"u8", "i8"}
    assert not [kind for kind, _ in run if kind == "Eltwise"]


def test_cpus_get_levels_that_span_each_activation_and_biases_in_int32(
    tiny: Subject, tiny_ranges: dict[str, Range]
) -> None:
    model = quantised_for_cpus(tiny.model, tiny_ranges)
    values = initializers(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[name] for name in node.input[1:])
            kept = tiny_ranges[node.input[0]]
            assert zero.dtype == np.uint8
            assert (zero == 0) == (kept.low == 0)
            assert scale == pytest.approx((kept.high - kept.low) / 255, rel=1e-6)
    by_name = {node.name: node for node in model.graph.node}
    dequantised = {
        node.output[0]: values[node.input[0]].dtype
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values
    }
    for layer in layers(tiny.model):
        weight, bias = by_name[layer.name].input[1:]
        assert (dequantised[weight], dequantised[bias]) == (np.int8, np.int32)
    assert not any(v.dtype == np.float32 and v.ndim >= 2 and v.size > 3 for v in values.values())


def test_tensorrt_gets_zeros_of_zero_float_biases_and_one_quantised_branch_of_an_addition(
    tiny: Subject, tiny_ranges: dict[str, Range]
) -> None:
    model = quantised_for_tensorrt(tiny.model, tiny_ranges)
    values = initializers(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type in ("Conv", "Gemm"):
            assert values[node.input[2]].dtype == np.float32
        if node.op_type == "Add":
            assert sorted(producers[name].op_type for name in node.input) == ["Conv", "DequantizeLinear"]


def test_tensorrt_builds_an_engine_of_int8_layers(tiny: Subject, tiny_ranges: dict[str, Range]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from fuseline.serve.backends.engine.builder import build_engine

    first = layers(tiny.model)[0].name
    for kept in ([], [first]):
        model = quantised_for_tensorrt(tiny.model, tiny_ranges, kept)
        built = build_engine(serialised(model), precision="int8", capability="sm89", max_batch=4, allowed_fp32=kept)
        assert built.achieved.layers.get("fp32", 0) == len(kept)
        assert built.achieved.layers["int8"] == len(layers(tiny.model)) - len(kept)
        share = int8_share(model, layer_costs(tiny.model))
        assert built.achieved.weights["int8"] == share.own_weights
        assert built.achieved.multiply_adds["int8"] == share.own_multiply_adds


@FORMS
def test_layers_that_are_to_stay_fp32_do(tiny: Subject, tiny_ranges: dict[str, Range], quantise) -> None:
    names = [layer.name for layer in layers(tiny.model)]
    kept = [names[0], names[4], names[-1]]
    model = quantise(tiny.model, tiny_ranges, kept)
    costs = layer_costs(tiny.model)
    share = int8_share(model, costs)
    assert share.fp32_layer_names == tuple(kept)
    assert share.own_layers == share.layers - 3
    assert share.multiply_adds - share.own_multiply_adds == sum(costs[name].multiply_adds for name in kept)
    weights = initializers(model)
    for layer in layers(tiny.model):
        if layer.name in kept:
            assert np.array_equal(weights[layer.input[1]], initializers(tiny.model)[layer.input[1]])
    # The classifier's own input isn't rounded either.
    assert not [n for n in model.graph.node if n.name.startswith("avgpool") and n.op_type == "QuantizeLinear"]
    none = quantise(tiny.model, tiny_ranges, names)
    assert int8_share(none, costs).own_layers == 0


def own_resnet(**settings) -> nn.Module:
    """As recognition builds it of a checkpoint; without projections its shortcuts are option A's slices and pads."""
    common = {"block": "basic", "stem": "3x3", "stem_width": 8, "blocks_per_stage": (1, 1, 1), "classes": 10}
    widths = {"inner_widths": (8, 16, 32), "out_widths": (8, 16, 32), "projected_stages": (False, False, False)}
    return ResNet(ResNetSpec(**(common | widths | settings)))


def squeezed() -> nn.Module:
    projected = {"projected_stages": (False, True, True), "pooled_shortcuts": True}
    return own_resnet(squeeze_widths=(4, 4, 8), **projected)


def bottleneck() -> nn.Module:
    return CifarResNet(CifarBottleneck, (1, 1, 1), (8, 16, 32))


def wide_groups() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=4, width_per_group=4)


def preact() -> nn.Module:
    return PreActNetwork((1, 1), (8, 16), final_norm="bn")


def with_a_dead_channel() -> nn.Module:
    network = own_resnet()
    with torch.no_grad():
        network.bn1.weight[3] = network.bn1.bias[3] = 0
    return network


@pytest.mark.parametrize(
    ("make", "side"),
    [(bottleneck, 32), (wide_groups, 64), (preact, 32), (squeezed, 32), (with_a_dead_channel, 32)],
    ids=["bottleneck", "groups", "pre-activation", "squeeze and excitation, pooled", "option A, dead channel"],
)
def test_every_architecture_is_int8_throughout_and_close_to_fp32(make, side: int) -> None:
    torch.manual_seed(0)
    own = subject(make(), side, images=32)
    seen = activation_histograms(own.model, quantised_tensors(own.model), own.calibration, lambda _: None)
    ranges = {name: min_max(histogram) for name, histogram in seen.items()}
    expected = onnxruntime_logits(own.model, own.held_out)
    for quantise in (quantised_for_cpus, quantised_for_tensorrt):
        model = quantise(own.model, ranges)
        share = int8_share(model, layer_costs(own.model))
        assert share.fp32_layer_names == ()
        assert share.of_multiply_adds == 1.0
        for runtime, logits in int8_logits_by_runtime(model, own.held_out).items():
            # Of unrelated logits it is above 1.
            assert logit_error(logits, expected) < 0.3, (quantise.__name__, runtime)


def test_what_only_moves_values_keeps_their_scale() -> None:
    torch.manual_seed(0)
    own = subject(own_resnet(), images=16)
    seen = activation_histograms(own.model, quantised_tensors(own.model), own.calibration, lambda _: None)
    model = quantised_for_cpus(own.model, {name: min_max(histogram) for name, histogram in seen.items()})
    values, producers = initializers(model), {o: n for n in model.graph.node for o in n.output}
    pads = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and producers[n.input[0]].op_type == "Pad"]
    assert len(pads) == 2
    for node in pads:
        source = producers[node.input[0]]
        while source.op_type in ("Pad", "Slice"):
            source = producers[source.input[0]]
        assert source.op_type == "DequantizeLinear"
        assert values[source.input[1]] == values[node.input[1]]
