import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fuseline.export.eager import normalised
from fuseline.export.folding.fold import fold_network
from fuseline.export.fp16.fp16_graph import fp16_from_fp32
from fuseline.export.graph.onnx_graph import check_graph, onnx_from_network, with_cast_first
from fuseline.export.graph.precision_share import check_share, precision_share
from fuseline.export.recognition.architectures import recognise
from fuseline.export.sample import generated_sample
from fuseline.serve.errors import ArchitectureError, VerificationError
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing
from tests.export.resnets import tiny_network

SPEC = InputSpec(height=32, width=32, preprocessing=Preprocessing(resize_shorter_side=32))
NORMALIZATION = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return recognise(tiny_network().state_dict()).module


def exported(network: torch.nn.Module) -> onnx.ModelProto:
    folded = fold_network(
        network,
        mean=NORMALIZATION.mean,
        std=NORMALIZATION.std,
        probe=torch.randn(1, 3, 32, 32),
    )
    return onnx_from_network(folded, SPEC, {"labels": ["a", "b"], "input": {"height": 32}})


@pytest.fixture(scope="module")
def graph(network: torch.nn.Module) -> onnx.ModelProto:
    return exported(network)


def run(graph: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(graph.SerializeToString()).run(["logits"], {"image": pixels})[0]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_uint8_nhwc_of_any_batch_in_float32_logits_of_pytorch_out(
    graph: onnx.ModelProto, network: torch.nn.Module, rows: int
) -> None:
    pixels = generated_sample(SPEC, rows).pixels
    with torch.inference_mode():
        expected = network(normalised(pixels, NORMALIZATION)).numpy()
    logits = run(graph, pixels)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4 * (expected.max() - expected.min())


def test_nodes_and_weights_bear_the_names_of_the_layers(graph: onnx.ModelProto) -> None:
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert {"conv1", "layer1.0.conv1", "layer4.1.conv2"} <= {node.name for node in convolutions}
    assert all(node.input[1] == f"{node.name}.weight" for node in convolutions)
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    assert {node.op_type for node in graph.graph.node} == {
        "Transpose", "Cast", "Sub", "Conv", "Relu", "Add", "ReduceMean", "Gemm"
    }  # fmt: skip


def test_metadata_is_there_and_no_path_of_the_machine(graph: onnx.ModelProto) -> None:
    properties = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert properties == {"fuseline.labels": ["a", "b"], "fuseline.input": {"height": 32}}
    assert b".py" not in graph.SerializeToString()


def test_the_same_network_gives_the_same_bytes(graph: onnx.ModelProto, network: torch.nn.Module) -> None:
    assert exported(network).SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_a_graph_with_batchnorm_or_of_another_form_is_refused(graph: onnx.ModelProto) -> None:
    with_batchnorm = onnx.ModelProto()
    with_batchnorm.CopyFrom(graph)
    relu = next(node for node in with_batchnorm.graph.node if node.op_type == "Relu")
    constants = [numpy_helper.from_array(np.ones(8, np.float32), name) for name in "abcd"]
    with_batchnorm.graph.initializer.extend(constants)
    source, relu.input[0] = relu.input[0], "normalised"
    at = list(with_batchnorm.graph.node).index(relu)
    with_batchnorm.graph.node.insert(
        at, helper.make_node("BatchNormalization", [source, *"abcd"], ["normalised"], name="bn9")
    )
    with pytest.raises(ArchitectureError, match="bn9"):
        check_graph(with_batchnorm, SPEC)
    other = SPEC.model_copy(update={"height": 64})
    with pytest.raises(ArchitectureError, match="64"):
        check_graph(graph, other)


def test_the_fp16_graph_is_fp16_all_through_and_close(graph: onnx.ModelProto) -> None:
    fp16 = fp16_from_fp32(graph)
    share = check_share(fp16, "fp16")
    assert share.own_layers == share.layers == 21
    assert share.own_weights == share.weights > 0
    inferred = onnx.shape_inference.infer_shapes(fp16, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    outputs = [node.output[0] for node in fp16.graph.node if node.op_type in ("Conv", "Relu", "Add", "ReduceMean")]
    assert {types[name] for name in outputs} == {TensorProto.FLOAT16}
    assert (fp16.graph.input[0].type.tensor_type.elem_type, fp16.graph.output[0].type.tensor_type.elem_type) == (
        TensorProto.UINT8,
        TensorProto.FLOAT,
    )
    pixels = generated_sample(SPEC, 8).pixels
    expected, given = run(graph, pixels), run(fp16, pixels)
    assert 0 < np.abs(given - expected).max() < 5e-3 * (expected.max() - expected.min())


def test_the_pixel_scale_keeps_the_first_layers_weights_out_of_the_subnormal_range(graph: onnx.ModelProto) -> None:
    def weights(model: onnx.ModelProto) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "conv1.weight"))

    plain, scaled = np.abs(weights(graph)), np.abs(weights(fp16_from_fp32(graph)).astype(np.float32))
    subnormal = np.finfo(np.float16).smallest_normal
    assert (plain < subnormal).mean() > 10 * (scaled < subnormal).mean()


def test_an_fp16_graph_with_an_fp32_layer_is_found_out(graph: onnx.ModelProto) -> None:
    assert precision_share(graph, "fp16").own_layers == 0
    with pytest.raises(VerificationError, match=r"layer3\.0\.conv1"):
        check_share(graph, "fp16")


def test_a_weight_beyond_fp16_is_refused_by_name(graph: onnx.ModelProto) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(graph)
    tensor = next(t for t in large.graph.initializer if t.name == "layer2.1.conv1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(VerificationError, match=r"layer2\.1\.conv1\.weight reaches 100000"):
        fp16_from_fp32(large)


class OwnNames(torch.nn.Module):
    """A buffer that is not saved, names that the exporter could want for its own, and zeros of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)
        self.register_buffer("pixel_mean", torch.rand(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = torch.zeros(x.shape[0], 3, 32, 1)
        return self.out(self.conv(torch.cat([x * self.pixel_mean, padding], 3)).mean((2, 3)))


def test_a_users_own_names_buffers_and_shapes_survive() -> None:
    torch.manual_seed(0)
    module = OwnNames().eval()
    graph = exported(module)
    pixels = generated_sample(SPEC, 3).pixels
    with torch.inference_mode():
        expected = module(normalised(pixels, NORMALIZATION)).numpy()
    spread = expected.max() - expected.min()
    assert np.abs(run(graph, pixels) - expected).max() < 1e-4 * spread
    assert np.abs(run(with_cast_first(graph), pixels) - expected).max() < 1e-4 * spread


def test_an_operator_that_onnx_has_not_is_one_clear_error() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x).mean((2, 3))

    with pytest.raises(ArchitectureError, match="can't write the network as ONNX.*bessel_j0"):
        exported(Odd())


class Views(nn.Module):
    """Flattens a last map of more than one pixel by a view, and works in place through another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x.view(x.size(0), -1).mul_(2.0)
        return self.linear(x.view(x.size(0), -1))


def test_views_of_maps_are_those_of_the_network_that_was_traced() -> None:
    module = Views().eval().requires_grad_(False)
    network = fold_network(module, mean=(0.0,) * 3, std=(1.0,) * 3, probe=torch.randn(1, 3, 8, 8))
    spec = InputSpec(height=8, width=8, channels=3, preprocessing=Preprocessing(resize_shorter_side=8))
    model = onnx_from_network(network, spec, {})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": pixels})
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous() / 255)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
